"use strict";
// v4 in plain JavaScript: sections 4 to 8 and 11 of v4_modern/train.py for one token at a time.
// A vector is an array of numbers; a matrix is whole numbers from -127 to 127, with a scale for each
// row. Letters as there: T tokens, C width, H heads, G heads of keys and values, D channels of a head.

// ---- weights ----

/** The bytes of a text in base64. */
function bytesOf(text) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** A vector or a matrix of what report_model.packed makes of it. */
function unpack({ vector, columns, numbers, scale }) {
  if (vector) return new Float32Array(bytesOf(vector).buffer);
  return {
    columns,
    numbers: new Int8Array(bytesOf(numbers).buffer), // row by row
    scale: new Float32Array(bytesOf(scale).buffer), // of each row
  };
}

/** Row `row` of a matrix. */
function rowOf({ columns, numbers, scale }, row) {
  const start = row * columns;
  return Float64Array.from(numbers.subarray(start, start + columns), (n) => n * scale[row]);
}

/** A matrix (rows, columns) times `x` (columns): a sum for each row. */
function times({ columns, numbers, scale }, x) {
  return Float64Array.from(scale, (scaleOfRow, row) => {
    let sum = 0;
    for (let i = 0, at = row * columns; i < columns; i++) sum += numbers[at + i] * x[i];
    return sum * scaleOfRow;
  });
}

const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
const plus = (x, y) => x.map((value, i) => value + y[i]);

/** Probabilities in proportion to the exponentials of `x`. */
function softmax(x) {
  const largest = x.reduce((a, b) => Math.max(a, b)); // taken off: the exponential overflows early
  const powers = x.map((value) => Math.exp(value - largest));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

// ---- 4. Norm ----

/** RMSNorm: `x` with a mean square of 1, times a gain for each channel. */
function norm(x, gain) {
  const length = Math.sqrt(dot(x, x) / x.length + 1e-6);
  return x.map((value, i) => (value / length) * gain[i]);
}

// ---- 5. Position ----

/** RoPE: a query or key (D) with channels i and i + D/2 turned, the faster the smaller i is. */
function rotate(x, position, base) {
  const half = x.length / 2, turned = x.slice();
  for (let i = 0; i < half; i++) {
    const angle = position * base ** (-i / half), cos = Math.cos(angle), sin = Math.sin(angle);
    turned[i] = x[i] * cos - x[i + half] * sin;
    turned[i + half] = x[i] * sin + x[i + half] * cos;
  }
  return turned;
}

// ---- 6. Attention ----

/** What a token, `x` (C), takes from itself and from those before it, whose keys and values are in
 * `cache`; its own are added there. `w` has the weights of this part of the block by their names. */
function attention(x, w, cache, config) {
  const D = config.head_size, group = config.n_heads / config.n_kv_heads;
  const heads = (y) => Array.from({ length: y.length / D }, (_, h) => y.subarray(h * D, (h + 1) * D));
  const position = cache.keys.length;
  const turned = (y, gain) => rotate(norm(y, gain), position, config.rope_base);
  const queries = heads(times(w("query"), x)).map((q) => turned(q, w("query_norm"))); // H of D
  cache.keys.push(heads(times(w("key"), x)).map((k) => turned(k, w("key_norm")))); // G of D
  cache.values.push(heads(times(w("value"), x)));
  const taken = new Float64Array(config.n_heads * D);
  queries.forEach((query, h) => {
    const g = Math.floor(h / group); // grouped queries: several heads share keys and values
    const weights = softmax(cache.keys.map((keys) => dot(query, keys[g]) / Math.sqrt(D)));
    weights.forEach((weight, t) => {
      for (let d = 0; d < D; d++) taken[h * D + d] += weight * cache.values[t][g][d];
    });
  });
  return times(w("output"), taken);
}

// ---- 7. Feed-forward ----

/** SwiGLU: an up projection times a gate, back to the width of the stream. */
function feedForward(x, w) {
  const gate = times(w("gate"), x), up = times(w("up"), x);
  return times(w("down"), up.map((value, i) => (value * gate[i]) / (1 + Math.exp(-gate[i]))));
}

// ---- 8. Language model ----

/** The model that report_model.model_of packed; `after(ids)` is all that one needs of it. */
function languageModel({ config, weights }) {
  const all = {};
  for (const name in weights) all[name] = unpack(weights[name]);
  const caches = Array.from({ length: config.n_layers }, () => ({ keys: [], values: [] }));
  let first = 0, read = []; // the caches hold the tokens of `read` from its number `first` on

  /** The stream (C) of one more token after all blocks. */
  function stream(id) {
    let x = rowOf(all["embedding.weight"], id);
    caches.forEach((cache, i) => {
      const of = (part) => (name) => all[`blocks.${i}.${part}${name}.weight`];
      const w = of("");
      x = plus(x, attention(norm(x, w("attention_norm")), of("attention."), cache, config));
      x = plus(x, feedForward(norm(x, w("feed_forward_norm")), of("feed_forward.")));
    });
    return x;
  }

  /** The logits (V) of the token after `ids`. Only tokens that are not in the caches are read. As in
   * section 11, the model sees the last T tokens of a text, and when more have come, the newer half
   * of those is read again. */
  function after(ids) {
    const T = config.context_length;
    let same = 0;
    while (same < Math.min(read.length, ids.length - 1) && read[same] === ids[same]) same++;
    if (same <= first) same = first = Math.max(0, ids.length - T);
    else if (ids.length - first > T) same = first = ids.length - Math.max(1, Math.floor(T / 2));
    for (const cache of caches) cache.keys.length = cache.values.length = same - first;
    let x;
    for (const id of ids.slice(same)) x = stream(id);
    read = ids.slice();
    return times(all["head.weight"], norm(x, all["norm.weight"]));
  }
  return { after };
}

// ---- 11. Sampling ----

/** Of each token, the probability at this temperature, and what is left of it where only the
 * likeliest may come, those that together have the probability `topP`; and all ids in their order. */
function probabilities(logits, temperature, topP) {
  const likeliest = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const p = temperature ? softmax(logits.map((logit) => logit / temperature))
    : logits.map((_, id) => Number(id === likeliest));
  const order = [...p.keys()].sort((a, b) => p[b] - p[a]), left = p.slice();
  let before = 0;
  for (const id of order) {
    if (before >= topP) left[id] = 0;
    before += p[id];
  }
  return { p, left, order };
}

/** The id on which `chance`, from 0 up to 1, falls when each has a share in proportion to `left`. */
function draw(left, chance) {
  let rest = chance * left.reduce((a, b) => a + b);
  const id = left.findIndex((share) => (rest -= share) < 0);
  return id < 0 ? left.findLastIndex((share) => share > 0) : id; // rounding: nothing was left
}
