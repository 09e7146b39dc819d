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

// ---- text by step ----

const learning = document.getElementById("learning-step");
if (learning) {
  const show = () => {
    const [step, text, bits] = data.learning.steps[learning.value];
    const scored = bits === null ? "" : `, ${bits.toFixed(2)} bits per byte`;
    document.getElementById("learning-says").textContent = `Step ${step.toLocaleString("en")}${scored}`;
    document.getElementById("learning-text").textContent = text;
  };
  learning.addEventListener("input", show);
  show();
}

// ---- merges ----

/** A byte-level BPE of `of`, as report_data.merging describes it. */
function merger(of) {
  const key = (left, right) => left * 2 ** 24 + right;
  const pattern = new RegExp(of.pattern, "gsu"), scaffolds = new Set(of.scaffolds);
  const ids = [...Array(256).keys()], vocab = ids.map((byte) => [byte]), ranks = new Map();
  const apart = ids.map((byte) => [byte]); // number -> the numbers left when scaffolds are no more
  for (let rank = 0; 2 * rank < of.merges.length; rank++) {
    const left = of.merges[2 * rank], right = of.merges[2 * rank + 1], number = 256 + rank;
    ranks.set(key(left, right), rank);
    vocab.push([...vocab[left], ...vocab[right]]);
    apart.push(scaffolds.has(number) ? [...apart[left], ...apart[right]] : [number]);
    ids.push(ids.at(-1) + (scaffolds.has(number) ? 0 : 1));
  }
  const merges = ranks.size, last = merges + (scaffolds.size ? 1 : 0);

  /** The numbers of a word's tokens after the first `limit` merges; adds to `used` those made. */
  function mergeWord(word, limit, used) {
    let numbers = [...new TextEncoder().encode(word)];
    for (;;) {
      let best = limit;
      for (let i = 0; i + 1 < numbers.length; i++) {
        best = Math.min(best, ranks.get(key(numbers[i], numbers[i + 1])) ?? limit);
      }
      if (best === limit) return numbers;
      used.add(best);
      const merged = [], [left, right] = of.merges.slice(2 * best, 2 * best + 2);
      for (let i = 0; i < numbers.length; i++) {
        const both = numbers[i] === left && numbers[i + 1] === right;
        merged.push(both ? 256 + best : numbers[i]);
        if (both) i++;
      }
      numbers = merged;
    }
  }

  /** The tokens of `text` at a step of the slider: after that many merges; in a last one, scaffolds
   * are taken apart. `numbers` are a byte, or 256 + the rank of a merge; `used` the ranks made. */
  function encode(text, step = last) {
    const used = new Set();
    let numbers = [];
    for (const word of text.match(pattern) ?? []) {
      numbers.push(...mergeWord(word, Math.min(step, merges), used));
    }
    if (step > merges) numbers = numbers.flatMap((number) => apart[number]);
    return { numbers, ids: numbers.map((n) => ids[n]), used: [...used].sort((a, b) => a - b) };
  }

  /** A token as text; what is no text, as the bytes in hexadecimal. */
  function show(number) {
    const text = new TextDecoder().decode(new Uint8Array(vocab[number]));
    const hex = vocab[number].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    return text.includes("\ufffd") ? `‹${hex}›` : text;
  }
  return { encode, show, scaffolds, merges, last, pair: (rank) => of.merges.slice(2 * rank, 2 * rank + 2) };
}

/** Wire up the part of the page in which the reader moves through merges. */
function openMerging() {
  const part = (name) => document.getElementById(`merging-${name}`);
  const slider = part("step"), all = {};
  for (const name in data.mergings) all[name] = merger(data.mergings[name]);

  function update() {
    const bpe = all[part("of").value], step = Number(slider.value), text = part("text").value;
    const { numbers, ids, used } = bpe.encode(text, step), bytes = new TextEncoder().encode(text);
    const quoted = (number) => `“${visible(bpe.show(number))}”`;
    let says = `${Math.min(step, bpe.merges)} of ${bpe.merges} merges: ${bytes.length} bytes in `;
    says += `${numbers.length} tokens, ${(bytes.length / Math.max(1, numbers.length)).toFixed(2)} bytes each. `;
    if (used.length) {
      const rank = used.at(-1), [left, right] = bpe.pair(rank).map(quoted);
      says += `The last that changed this text is number ${rank + 1}: `;
      says += `${left} + ${right} → ${quoted(256 + rank)}. `;
    }
    if (step > bpe.merges) {
      says += `Scaffolds are taken apart again: ${bpe.scaffolds.size} of the tokens only served to `;
      says += "build longer ones, and get no id.";
    } else if (bpe.scaffolds.size) {
      says += "Scaffolds, in dashed lines, vanish in the slider's last step.";
    }
    part("says").textContent = says;
    part("tokens").replaceChildren(...numbers.map((number) => {
      const name = bpe.scaffolds.has(number) ? "scaffold" : "";
      return element("span", bpe.show(number).replaceAll("\n", "⏎\n"), name);
    }));
    part("ids").textContent = bpe.scaffolds.size && step <= bpe.merges ? "not given yet" : ids.join(" ");
    part("back").disabled = before() === undefined;
    part("on").disabled = after() === undefined;
  }

  /** The steps that change the text, in order. */
  function steps() {
    const bpe = all[part("of").value];
    const changes = bpe.encode(part("text").value).used.map((rank) => rank + 1);
    return bpe.last > bpe.merges ? [0, ...changes, bpe.last] : [0, ...changes];
  }
  const before = () => steps().findLast((step) => step < slider.value);
  const after = () => steps().find((step) => step > slider.value);
  const goTo = (step) => { slider.value = step; update(); };

  function pick() {
    slider.max = all[part("of").value].last;
    goTo(slider.max);
  }
  part("of").addEventListener("change", pick);
  for (const name of ["text", "step"]) part(name).addEventListener("input", update);
  part("on").addEventListener("click", () => goTo(after() ?? slider.value));
  part("back").addEventListener("click", () => goTo(before() ?? slider.value));
  pick();
}
if (document.getElementById("merging")) openMerging();
