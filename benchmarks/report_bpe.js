"use strict";
// Byte-pair encoding in plain JavaScript, of the merges that v2, v3 and v4 have learned.

/** The text of bytes; what is no UTF-8 becomes U+FFFD. */
function decoded(bytes) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
}

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
    const text = decoded(vocab[number]);
    const hex = vocab[number].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    return text.includes("\ufffd") ? `‹${hex}›` : text;
  }
  const pair = (rank) => of.merges.slice(2 * rank, 2 * rank + 2);
  return { encode, show, vocab, scaffolds, merges, last, pair };
}

/** The tokenizer of a model: a `merger` and its special tokens, {text: id}, which stand for
 * themselves in any text. */
function tokenizer(bpe, special) {
  const texts = Object.keys(special).sort((a, b) => b.length - a.length); // the longest goes first
  const escaped = texts.map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  const pattern = new RegExp(`(${escaped.join("|")})`, "u");
  const bytes = bpe.vocab.slice();
  for (const text of texts) bytes[special[text]] = [...new TextEncoder().encode(text)];
  return {
    encode: (text) => text.split(pattern).flatMap((part, i) => i % 2 ? special[part] : bpe.encode(part).ids),
    decode: (ids) => decoded(ids.flatMap((id) => bytes[id])),
  };
}
