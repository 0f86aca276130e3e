// The toy theory of lib/reptrace/theory in the browser: mathematics only, no page is touched. tests/report/test_lab.py
// runs both from the same start and compares them. A classic script, since a page opened over file:// loads no modules.
//
// Matrices are Float64Arrays by rows: F (samples x width) holds a feature row for each sample, W (width x classes) a
// class vector in each column. Samples are ordered by class: the first counts[0] are of class 0, and so on.
"use strict";

(function () {
  // Fig 4's start, as in starts.py: degrees of its first class, from there to the next, by which its weights turn less;
  // lengths of features and weights, and how far to the sides the samples of a class lie.
  const FIRST = 100, GAP = 98.3, LAG = 10, LENGTHS = [0.6, 0.75], SPREAD = 0.05;

  function sum(values) {
    return values.reduce((total, value) => total + value, 0);
  }

  // Numbers of samples by class, in proportion to 1/rank^skew, each at least one. Largest remainders fill up the sum,
  // so that it is the number asked for (zipf_counts of starts.py rounds, and its sum may differ).
  function zipfCounts(samples, classes, skew) {
    const weights = Array.from({ length: classes }, (_, k) => Math.pow(k + 1, -skew));
    const total = sum(weights);
    const exact = weights.map((weight) => (samples - classes) * weight / total);
    const counts = exact.map((share) => 1 + Math.floor(share));
    const order = exact.map((share, k) => [share - Math.floor(share), k]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const left = samples - sum(counts);
    for (let k = 0; k < left; k++) counts[order[k][1]] += 1;
    return counts;
  }

  // A seeded source of standard normal numbers: mulberry32, then Box and Muller.
  function normals(seed) {
    let state = (seed + 0x9e3779b9) >>> 0;
    const uniform = function () {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  // Singular values, largest first, and right singular vectors of an array of columns, by one-sided Jacobi rotations.
  // Small singular values keep their digits, which they would lose by way of the eigenvalues of A^T A.
  function svd(columns) {
    const a = columns.map((column) => Float64Array.from(column));
    const v = a.map((_, k) => Float64Array.from(a, (_, j) => (j === k ? 1 : 0)));
    for (let sweep = 0, moved = true; moved && sweep < 60; sweep++) {
      moved = false;
      for (let p = 0; p < a.length; p++) {
        for (let q = p + 1; q < a.length; q++) moved = orthogonalize(a, v, p, q) || moved;
      }
    }
    const norms = a.map((column) => Math.sqrt(dot(column, column)));
    const order = norms.map((_, k) => k).sort((j, k) => norms[k] - norms[j]);
    return { values: order.map((k) => norms[k]), vectors: order.map((k) => v[k]) };
  }

  function dot(x, y) {
    let total = 0;
    for (let k = 0; k < x.length; k++) total += x[k] * y[k];
    return total;
  }

  function orthogonalize(a, v, p, q) {
    const across = dot(a[p], a[q]), first = dot(a[p], a[p]), second = dot(a[q], a[q]);
    if (!(Math.abs(across) > 1e-15 * Math.sqrt(first * second))) return false;
    const zeta = (second - first) / (2 * across);
    const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
    const cosine = 1 / Math.sqrt(1 + t * t), sine = cosine * t;
    for (const columns of [a, v]) {
      const x = columns[p], y = columns[q];
      for (let k = 0; k < x.length; k++) {
        const old = x[k];
        x[k] = cosine * old - sine * y[k];
        y[k] = sine * old + cosine * y[k];
      }
    }
    return true;
  }

  function columnsOf(matrix, rows, width) {
    const column = (j) => Float64Array.from({ length: rows }, (_, i) => matrix[i * width + j]);
    return Array.from({ length: width }, (_, j) => column(j));
  }

  function rowsOf(matrix, rows, width) {
    return Array.from({ length: rows }, (_, i) => matrix.slice(i * width, (i + 1) * width));
  }

  // Effective rank: exp of the entropy of the eigenvalue shares of the covariance, centred or not (second moments).
  function rankme(columns, centred) {
    const shifted = columns.map((column) => {
      const mean = centred ? sum(column) / column.length : 0;
      return column.map((x) => x - mean);
    });
    const squares = svd(shifted).values.map((value) => value * value);
    const total = sum(squares);
    if (!(total > 0)) return NaN;
    const shares = squares.map((square) => square / total).filter((share) => share > 0);
    return Math.exp(-sum(shares.map((share) => share * Math.log(share))));
  }

  // Start of a run: normal numbers of standard deviation `scale`, class by class and sample by sample, so that one more
  // of either leaves the others where they were. `kind` is "free": these alone; "balanced": W is drawn and F chosen
  // with F^T F = W W^T, which descent with a small rate keeps (Theorem 1); "constructed": added to the start of Fig 4.
  function start({ counts, width, scale, kind, seed }) {
    const samples = sum(counts), classes = counts.length, draw = normals(seed), W = new Float64Array(width * classes);
    for (let k = 0; k < classes; k++) for (let j = 0; j < width; j++) W[j * classes + k] = scale * draw();
    if (kind === "balanced") return { F: balancedFeatures(W, width, classes, samples, draw), W };
    const F = Float64Array.from({ length: samples * width }, () => scale * draw());
    return kind === "constructed" ? addConstructed({ F, W, counts, width }) : { F, W };
  }

  // What `constructed` of starts.py has before its jitter: samples of the frequent classes side by side in the
  // direction of their class, with its weights along it; nothing for the two last classes.
  function addConstructed({ F, W, counts, width }) {
    const classes = counts.length, frequent = classes - 2, gap = Math.min(GAP, 360 / frequent);
    const along = (degrees) => [Math.cos(Math.PI * degrees / 180), Math.sin(Math.PI * degrees / 180)].slice(0, width);
    for (let k = 0, i = 0; k < frequent; k++) {
      const angle = FIRST - gap * k, length = LENGTHS[k % 2];
      along(angle - (k ? 0 : LAG)).forEach((part, j) => (W[j * classes + k] += length * part));
      for (let n = 0; n < counts[k]; n++, i++) {
        const aside = counts[k] > 1 ? SPREAD * (1 - 2 * n / (counts[k] - 1)) : 0, across = along(angle + 90);
        along(angle).forEach((part, j) => (F[i * width + j] += length * part + aside * across[j]));
      }
    }
    return { F, W };
  }

  // F = Q diag(s) U^T with W = U diag(s) V^T and Q random orthonormal columns, as many as W has singular values.
  function balancedFeatures(W, width, classes, samples, draw) {
    const { values, vectors } = svd(rowsOf(W, width, classes));
    const rank = Math.min(width, classes), frame = orthonormal(samples, rank, draw);
    const F = new Float64Array(samples * width);
    for (let i = 0; i < samples; i++) {
      for (let k = 0; k < rank; k++) {
        for (let j = 0; j < width; j++) F[i * width + j] += frame[k][i] * values[k] * vectors[k][j];
      }
    }
    return F;
  }

  function orthonormal(length, count, draw) {
    const columns = [];
    for (let k = 0; k < count; k++) {
      let column = Float64Array.from({ length }, draw);
      for (const before of [...columns, ...columns]) {  // twice, against what the first round leaves by rounding
        const overlap = dot(column, before);
        column = column.map((x, i) => x - overlap * before[i]);
      }
      const norm = Math.sqrt(dot(column, column));
      columns.push(column.map((x) => x / norm));
    }
    return columns;
  }

  // At most `count` steps, log-spaced, with 0, 1 and the last.
  function logSteps(last, count) {
    const spaced = Array.from({ length: count }, (_, k) => Math.round(Math.pow(last, k / (count - 1))));
    return [0, ...new Set(spaced)];
  }

  // A run of full-batch gradient descent, at step 0. `record`: the steps to measure, increasing, the first one 0.
  function descent({ F, W, counts, width, loss, rate, record }) {
    const samples = sum(counts), classes = counts.length;
    const run = {
      F: Float64Array.from(F), W: Float64Array.from(W), samples, width, classes, loss, rate, record,
      labels: counts.flatMap((count, k) => Array(count).fill(k)), E: new Float64Array(samples * classes),
      step: 0, records: [], diverged: null,
    };
    run.records.push(measure(run));
    return run;
  }

  function finished(run) {
    return run.diverged !== null || run.records.length === run.record.length;
  }

  // Go on for some milliseconds, so that a page stays responsive, or to the end.
  function advance(run, milliseconds = Infinity) {
    const until = performance.now() + milliseconds;
    while (!finished(run) && performance.now() < until) {
      const target = Math.min(run.record[run.records.length], run.step + 100);
      while (run.step < target && run.diverged === null) descend(run);
      if (run.diverged === null && run.step === run.record[run.records.length]) run.records.push(measure(run));
    }
  }

  // One step: dF = E W^T and dW = F^T E, E the error of the logits.
  function descend(run) {
    const { F, W, E, samples, width, classes, rate } = run;
    errors(run);
    const G = new Float64Array(W.length);
    for (let i = 0; i < samples; i++) {
      for (let j = 0; j < width; j++) {
        let gradient = 0;
        const feature = F[i * width + j];
        for (let k = 0; k < classes; k++) {
          const error = E[i * classes + k];
          gradient += error * W[j * classes + k];
          G[j * classes + k] += error * feature;
        }
        F[i * width + j] = feature - rate * gradient;
      }
    }
    for (let k = 0; k < W.length; k++) W[k] -= rate * G[k];
    run.step += 1;
    if (!Number.isFinite(dot(W, W))) run.diverged = run.step;
  }

  // E = P - Y (cross-entropy, P the softmax of the logits) or F W - Y (squared error). Returns the loss, summed over
  // the samples, and how many samples have their largest logit at their class.
  function errors({ F, W, E, samples, width, classes, labels, loss }) {
    let total = 0, right = 0;
    for (let i = 0; i < samples; i++) {
      const logits = E.subarray(i * classes, (i + 1) * classes), label = labels[i];
      logits.fill(0);
      for (let j = 0; j < width; j++) {
        for (let k = 0; k < classes; k++) logits[k] += F[i * width + j] * W[j * classes + k];
      }
      right += largest(logits) === label ? 1 : 0;
      total += loss === "squared" ? squaredError(logits, label) : crossEntropy(logits, label);
    }
    return { loss: total, right };
  }

  function largest(values) {
    let at = 0;
    for (let k = 1; k < values.length; k++) if (values[k] > values[at]) at = k;
    return at;
  }

  // Both leave the errors in the place of the logits.
  function crossEntropy(logits, label) {
    const highest = logits[largest(logits)], own = logits[label] - highest;
    let total = 0;
    for (let k = 0; k < logits.length; k++) total += logits[k] = Math.exp(logits[k] - highest);
    for (let k = 0; k < logits.length; k++) logits[k] /= total;
    logits[label] -= 1;
    return Math.log(total) - own;
  }

  function squaredError(logits, label) {
    logits[label] -= 1;
    return 0.5 * dot(logits, logits);
  }

  // What is kept of a recorded step. Singular values: min(samples, width) of F, min(width, classes) of W.
  function measure(run) {
    const { samples, width, classes } = run, columns = columnsOf(run.F, samples, width);
    return {
      step: run.step, ...errors(run), F: run.F.slice(), W: run.W.slice(),
      centred: rankme(columns, true), uncentred: rankme(columns, false),
      featureValues: svd(columns).values.slice(0, samples),
      classifierValues: svd(rowsOf(run.W, width, classes)).values.slice(0, classes),
    };
  }

  // Collapse, expansion and fall of RankMe, as phases.py finds them, with the spans of indices to shade.
  // Nothing is found among values of which one is no number.
  function phases(values, size = 0.02) {
    const found = { collapseEnd: -1, turn: -1, collapse: NaN, expansion: NaN, fall: NaN, remaining: NaN, anyFall: NaN,
                    lasting: false, passing: false, spans: [] };
    if (values.length < 2 || !values.every(Number.isFinite)) return found;
    const afterFall = firstMinimum(values, firstFall(values, size), size);
    const { low, grows } = afterFall.grows ? afterFall : firstMinimum(values, 0, size);
    const turn = low + largest(values.slice(low)), last = values.length - 1;
    const lowest = turn + largest(values.slice(turn).map((value) => -value));
    const highest = Math.max(...values.slice(lowest));
    found.collapse = 1 - values[low] / Math.max(...values.slice(0, low + 1));
    found.expansion = grows ? values[turn] / values[low] - 1 : 0;
    found.fall = grows ? 1 - values[lowest] / values[turn] : 0;
    found.remaining = grows ? 1 - values[last] / values[turn] : 0;
    found.anyFall = grows ? largestFall(values, low, size) : 0;
    if (grows) Object.assign(found, { collapseEnd: low, turn });
    const shown = { fall: found.fall > size, expansion: grows, collapse: found.collapse > size };
    const three = shown.collapse && grows && found.anyFall > size, lasts = found.remaining > size;
    Object.assign(found, { lasting: three && lasts, passing: three && !lasts });
    const end = shown.fall ? turn : last;
    found.spans = [
      shown.collapse
        && { phase: "warmup", first: 0, last: grows ? low : last, change: -found.collapse, to: values[low] },
      shown.expansion && { phase: "entropy-seeking", first: low, last: end, change: found.expansion, to: values[turn] },
      shown.fall
        && { phase: "compression-seeking", first: turn, last: lowest, change: -found.fall, to: values[lowest] },
      shown.fall && lowest < last
        && { phase: "later", first: lowest, last, change: highest / values[lowest] - 1, to: highest },
    ].filter(Boolean);
    return found;
  }

  // The largest relative fall below the highest value since index `low`, once values have grown by more than `size`.
  function largestFall(values, low, size) {
    let highest = values[low], fall = 0;
    for (const value of values.slice(low)) {
      highest = Math.max(highest, value);
      if (highest > (1 + size) * values[low]) fall = Math.max(fall, 1 - value / highest);
    }
    return fall;
  }

  // Index of the first value smaller by more than `size`, relatively, than the largest before it; else 0.
  function firstFall(values, size) {
    for (let k = 1, highest = values[0]; k < values.length; k++) {
      highest = Math.max(highest, values[k]);
      if (values[k] < (1 - size) * highest) return k;
    }
    return 0;
  }

  // The lowest value since `begin` before the first that is larger by more than `size`; where none is, of all of them.
  function firstMinimum(values, begin, size) {
    let low = begin;
    for (let k = begin + 1; k < values.length; k++) {
      if (values[k] > (1 + size) * values[low]) return { low, grows: true };
      if (values[k] < values[low]) low = k;
    }
    return { low, grows: false };
  }

  // Right singular vectors of features and class vectors of some records together, largest first: the directions in
  // which the run moves most.
  function directions(records, { samples, width, classes }) {
    const columns = Array.from({ length: width }, (_, j) => records.flatMap(({ F, W }) => [
      ...columnsOf(F, samples, width)[j], ...W.slice(j * classes, (j + 1) * classes)]));
    return svd(columns).vectors;
  }

  window.Toy = { zipfCounts, start, logSteps, descent, advance, finished, phases, directions, svd, rankme };
})();
