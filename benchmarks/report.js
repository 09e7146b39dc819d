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

/** The paragraph as each version reads it: where it stands, and the byte each token begins with. */
const readings = [...document.querySelectorAll(".coloured")].map((paragraph) => {
  const of = data.coloured[paragraph.dataset.of];
  let bytes = 0;
  return { paragraph, of, starts: of.bytes.map((length) => (bytes += length) - length) };
});

/** What a version expected where its token `number` came: that token, and the ten likeliest. */
function guesses({ paragraph, of }, number) {
  const [text, bits, , rank, top] = of.tokens[number], rows = [];
  for (let i = 0; i < of.tops[top].length; i += 2) {
    const token = of.vocab[of.tops[top][i]], percent = of.tops[top][i + 1] / 100;
    const bar = element("span", "", "bar");
    bar.style.width = `${percent}%`;
    const cells = [visible(token), `${percent.toFixed(percent < 10 ? 1 : 0)}%`, bar];
    const came = rank === i / 2 + 1 ? "came" : "";
    rows.push(element("tr", cells.map((cell) => element("td", cell)), came));
  }
  const came = element("p", [
    element("b", paragraph.dataset.of.split("_")[0]), " ", element("code", visible(text)),
    ` guess no. ${rank.toLocaleString("en")}, cost ${bits.toFixed(1)} bits`,
  ]);
  return element("div", [came, element("table", element("tbody", rows))]);
}

/** Show what all versions expected where the token in `span` came. */
function expect(span) {
  const { starts } = readings.find(({ paragraph }) => paragraph === span.parentElement);
  const place = starts[[...span.parentElement.children].indexOf(span)];
  document.querySelectorAll(".coloured .chosen").forEach((old) => old.classList.remove("chosen"));
  const all = readings.map((reading) => {
    const number = reading.starts.findLastIndex((start) => start <= place);
    reading.paragraph.children[number].classList.add("chosen");
    const shown = guesses(reading, number);
    if (reading.paragraph === span.parentElement) shown.className = "pointed";
    return shown;
  });
  document.getElementById("expected").replaceChildren(...all);
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

// ---- attention ----

/** Wire up the part of the page that shows where the heads of each version look. */
function openAttention() {
  const part = (name) => document.getElementById(`attention-${name}`);
  let of, bytes, head, token; // of `bytes`, each is 255 times the square root of a weight

  /** The square roots of what `token` takes from itself and each token before it in `head`. */
  function roots(head, token) {
    const pairs = (T) => (T * (T + 1)) / 2, start = head * pairs(of.tokens.length) + pairs(token);
    return [...bytes.subarray(start, start + token + 1)].map((byte) => byte / 255);
  }

  const name = (head) => `layer ${1 + Math.floor(head / of.heads)}, head ${1 + (head % of.heads)}`;

  /** A head as a picture: a row for each token that looks, a column for each that is looked at. */
  function picture(head) {
    const T = of.tokens.length, canvas = document.createElement("canvas"), pixels = new ImageData(T, T);
    for (let row = 0; row < T; row++) {
      roots(head, row).forEach((root, column) => {
        pixels.data.set([224, 122, 24, 255 * root], 4 * (row * T + column));
      });
    }
    canvas.width = canvas.height = T;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  function update() {
    const taken = roots(head, token), most = Math.max(...taken);
    [...part("tokens").children].forEach((span, i) => {
      span.className = i === token ? "shade chosen" : i > token ? "later" : "shade";
      span.style.setProperty("--b", `${Math.round((100 * (taken[i] ?? 0)) / most)}%`);
    });
    [...part("heads").children].forEach((button, i) => button.setAttribute("aria-pressed", i === head));
    const named = [...taken.keys()].sort((a, b) => taken[b] - taken[a]).slice(0, 5).flatMap((i, rank) => [
      `${rank ? ", " : " takes "}${Math.round(100 * taken[i] ** 2)}% from `,
      i === token ? "itself" : element("code", visible(of.tokens[i])),
    ]);
    part("says").replaceChildren(`In ${name(head)}, `, element("code", visible(of.tokens[token])), ...named, ".");
  }

  function pick() {
    of = data.attention[part("of").value];
    bytes = bytesOf(of.weights);
    [head, token] = [0, Math.min(20, of.tokens.length - 1)];
    part("heads").style.setProperty("--heads", of.heads);
    part("heads").replaceChildren(...Array.from({ length: of.layers * of.heads }, (_, i) => {
      const button = element("button", [picture(i)]);
      button.type = "button";
      button.setAttribute("aria-label", name(i));
      button.addEventListener("click", () => { head = i; update(); });
      return button;
    }));
    part("tokens").replaceChildren(...of.tokens.map((text) => element("span", text.replaceAll("\n", "⏎\n"))));
    update();
  }

  const look = (event) => {
    const at = [...part("tokens").children].indexOf(event.target);
    if (at >= 0) { token = at; update(); }
  };
  part("tokens").addEventListener("pointerover", look);
  part("tokens").addEventListener("click", look);
  part("tokens").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    token = Math.min(of.tokens.length - 1, Math.max(0, token + by));
    update();
    event.preventDefault();
  });
  part("of").addEventListener("change", pick);
  pick();
}
if (document.getElementById("attention-of")) openAttention();

// ---- writing ----

/** Wire up the part of the page in which v4 writes. */
function openWriting() {
  const most = 300; // tokens written in a go
  const part = (name) => document.getElementById(`writing-${name}`);
  const { encode, decode } = tokenizer(merger(data.mergings[data.model.version]), data.model.special);
  const model = languageModel(data.model), end = data.model.start;
  let ids, logits, choices, timer = null, left = 0;

  /** Show the ten likeliest tokens; each can be taken by a click. */
  function showChoices() {
    const temperature = Number(part("temperature").value), topP = Number(part("top-p").value);
    part("temperature-is").textContent = temperature.toFixed(2);
    part("top-p-is").textContent = topP.toFixed(2);
    choices = probabilities(logits, temperature, topP);
    const total = choices.left.reduce((a, b) => a + b);
    const rows = choices.order.slice(0, 10).map((id) => {
      const percent = (100 * choices.left[id]) / total, bar = element("span", "", "bar");
      bar.style.width = `${percent}%`;
      const button = element("button", visible(decode([id])));
      button.type = "button";
      button.addEventListener("click", () => { stop(); add(id); });
      const isCut = choices.p[id] && !choices.left[id];
      const share = isCut ? "cut off" : `${percent.toFixed(percent < 10 ? 1 : 0)}%`;
      return element("tr", [button, share, bar].map((cell) => element("td", cell)));
    });
    part("choices").replaceChildren(...rows);
    const rest = choices.order.slice(10).filter((id) => choices.left[id]);
    const restPercent = (100 * rest.reduce((sum, id) => sum + choices.left[id], 0)) / total;
    part("rest").textContent = `${rest.length.toLocaleString("en")} others: ${restPercent.toFixed(1)}%`;
  }

  /** Read the text, in `ids`, and show what may follow. */
  function read() {
    const started = performance.now();
    logits = model.after(ids);
    part("says").textContent = `${ids.length - 1} tokens, ${(performance.now() - started).toFixed(0)} ms for the next.`;
    showChoices();
  }

  /** Add a token to the text; false if it says that the text ends here. */
  function add(id) {
    if (id === end) {
      part("says").textContent = "<|endoftext|>: here, the text ends.";
      return false;
    }
    ids.push(id);
    part("text").value = decode(ids.slice(1));
    part("text").scrollTop = part("text").scrollHeight;
    read();
    return true;
  }
  const step = () => add(draw(choices.left, Math.random()));

  function go() {
    timer = left-- > 0 && step() ? setTimeout(go, 30) : null;
    part("run").textContent = timer ? "Stop" : "Write";
  }
  function stop() {
    clearTimeout(timer);
    timer = null;
    part("run").textContent = "Write";
  }

  function typed() {
    stop();
    ids = [end, ...encode(part("text").value)];
    read();
  }
  part("text").addEventListener("input", typed);
  for (const name of ["temperature", "top-p"]) part(name).addEventListener("input", showChoices);
  part("step").addEventListener("click", () => { stop(); step(); });
  part("run").addEventListener("click", () => {
    if (timer) return stop();
    left = most;
    go();
  });
  typed();
}
if (document.getElementById("writing-text")) openWriting();
