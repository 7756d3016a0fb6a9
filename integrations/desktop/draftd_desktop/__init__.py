"""The daemon on the session bus: `org.draftd.Assistant1` for scripts, `org.kde.krunner1` for KRunner."""
