"""What the controller learnt, as a file in the state directory that a crash can't corrupt."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from draftd.daemon.calibration import BINS
from draftd.daemon.costs import KNOTS
from draftd.models.digest import replace_file

VERSION: Literal[5] = 5
FOLDER = "learnt"  # in the state directory
logger = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0.0, lt=1e15, allow_inf_nan=False)]
Count = Annotated[float, Field(ge=0.0, lt=1e15, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CostsState(_State):
    level: Positive
    shape: Annotated[list[Positive], Field(min_length=len(KNOTS), max_length=len(KNOTS))]
    weight: Annotated[list[Count], Field(min_length=len(KNOTS), max_length=len(KNOTS))]


class CalibrationState(_State):
    tried: Annotated[list[Count], Field(min_length=BINS, max_length=BINS)]
    accepted: Annotated[list[Count], Field(min_length=BINS, max_length=BINS)]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if any(some > all_ for some, all_ in zip(self.accepted, self.tried, strict=True)):
            raise ValueError("more accepted than tried")
        return self


class Learnt(_State):
    """Costs, calibration and typical rounds of one pair on one machine."""

    version: Literal[5] = VERSION
    target: CostsState
    draft: CostsState
    calibrations: dict[str, CalibrationState]
    certain: CalibrationState
    hope: Share
    good: Share
    averages: dict[str, list[Count]]  # by name: weight, then sums


def file_path(state_dir: Path, key: str) -> Path:
    """The file of one pair, run in one way on one machine."""
    return state_dir / FOLDER / f"{key}.json"


def clear(state_dir: Path) -> int:
    """Remove what was learnt of all pairs; how many files that were. Raises OSError."""
    files = list((state_dir / FOLDER).glob("*.json"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def load(path: Path) -> Learnt | None:
    """What an earlier run kept, or None: without a file, and with a warning if it is of no use."""
    try:
        return Learnt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("cannot read %s (%s): drafting starts from what is typical", path, error.strerror)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        logger.warning("%s is damaged or of another version (%s: %s): ignored", path, where, first["msg"])
    return None


def save(path: Path, learnt: Learnt) -> None:
    """Replace the file in one step; a disk that can't take it costs a warning, not an answer."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, learnt.model_dump_json().encode())
    except OSError as error:
        logger.warning("cannot keep what was learnt in %s: %s", path, error.strerror)
