// An answer's text on the page: drafted runs marked, fenced code in a box. Only text nodes are made, never markup.

export class Writer {
  constructor(element) {
    this.element = element;
    this.block("div", "prose");
  }

  block(tag, kind) {
    this.box = document.createElement(tag);
    this.box.className = kind;
    this.element.append(this.box);
    this.line = [];
  }

  /** Add a run; one that holds line ends is taken line by line. */
  add(text, drafted) {
    const [first, ...rest] = text.split("\n");
    this.piece(first, drafted);
    for (const line of rest) {
      this.end(drafted);
      this.piece(line, drafted);
    }
  }

  piece(text, drafted) {
    if (!text) return;
    const span = document.createElement("span");
    if (drafted) span.className = "drafted";
    span.textContent = text;
    this.box.append(span);
    this.line.push(span);
  }

  /** The line is whole: a fence opens or closes a box of code, anything else stays. */
  end() {
    if (this.line.map((span) => span.textContent).join("").trimStart().startsWith("```")) {
      this.line.forEach((span) => span.remove());
      const [tag, kind] = this.box.tagName === "PRE" ? ["div", "prose"] : ["pre", "code"];
      this.block(tag, kind);
    } else {
      if (this.box.hasChildNodes() || this.box.tagName === "PRE") this.box.append("\n");
      this.line = [];
    }
  }

  /** There is no more: a fence at the very end is not text either. */
  finish() {
    if (this.line.map((span) => span.textContent).join("").trim() === "```") this.end();
  }
}
