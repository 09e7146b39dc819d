"use strict";
// What moves on the page, in plain JavaScript; its data is JSON in the element #data.

const data = JSON.parse(document.getElementById("data").textContent);
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

/** A new element with this text or these children. */
function element(tag, content = "", className = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...(Array.isArray(content) ? content : [content]));
  return made;
}

// ---- a paragraph, token by token ----

/** Show what the model expected where the token in `span` came. */
function expect(span) {
  const paragraph = span.parentElement, of = data.coloured[paragraph.dataset.of];
  const [text, bits, , rank, top] = of.tokens[[...paragraph.children].indexOf(span)];
  document.querySelector(".coloured .chosen")?.classList.remove("chosen");
  span.classList.add("chosen");
  const rows = [];
  for (let i = 0; i < of.tops[top].length; i += 2) {
    const token = of.vocab[of.tops[top][i]], percent = of.tops[top][i + 1] / 100;
    const bar = element("span", "", "bar");
    bar.style.width = `${percent}%`;
    const cells = [visible(token), `${percent.toFixed(percent < 10 ? 1 : 0)}%`, bar];
    const came = rank === i / 2 + 1 ? "came" : "";
    rows.push(element("tr", cells.map((cell) => element("td", cell)), came));
  }
  const came = element("p", [
    element("b", paragraph.dataset.of), ": ", element("code", visible(text)), " came, ",
    `the ${rank === 1 ? "first" : `number ${rank}`} of its guesses: ${bits.toFixed(1)} bits.`,
  ]);
  const table = element("table", element("tbody", rows));
  document.getElementById("expected").replaceChildren(came, table);
}

for (const paragraph of document.querySelectorAll(".coloured")) {
  const show = (event) => event.target.matches(".shade") && expect(event.target);
  paragraph.addEventListener("pointerover", show);
  paragraph.addEventListener("click", show);
  paragraph.addEventListener("keydown", (event) => {
    const way = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (!way) return;
    const next = paragraph.querySelector(".chosen")?.[way] ?? paragraph.firstElementChild;
    expect(next);
    event.preventDefault();
  });
}
const first = document.querySelector(".coloured");
if (first) expect(first.children[Math.min(20, first.children.length - 1)]);
