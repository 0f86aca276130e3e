// The page's part of the lab: controls, time, words. Mathematics is in toy.js, drawing in plot.js, what can be set in
// settings.js. A run is computed in short slices between frames, so that the page answers meanwhile.
"use strict";

(function () {
  const { CONTROLS, DEFAULTS } = Settings;
  const RECORDS = 240;  // recorded steps, at most
  const SLICE = { playing: 8, waiting: 30 };  // milliseconds of computing between two frames
  const REFRESH = { least: 100, share: 0.2 };  // milliseconds between pictures of a run on its way; share of the time
  const CEILING = 10;  // times the first loss: up to there a run that diverges is drawn
  const SWEEP = 8;  // seconds from the first to the last step at speed 1
  const OTHER = { centred: "uncentred", uncentred: "centred" };
  const LOSS_LABELS = { "cross-entropy": "loss (nats, summed)", "squared": "loss (½ error², summed)" };

  const lab = { settings: { ...DEFAULTS }, run: null, cursor: 0, following: true, playing: false, speed: 1,
                fps: null, view: null };
  const nodes = {};

  // Settings

  // An anchor of the page, such as #exercises, is no setting.
  function adopt() {
    if (location.hash && !location.hash.includes("=")) return;
    const { settings, problems } = Settings.read(location.hash);
    lab.settings = settings;
    say(nodes.problems, problems);
    lab.following = true;
    show();
    restart();
  }

  function set(key, value) {
    lab.settings = Settings.fit({ ...lab.settings, [key]: value }, key);
    say(nodes.problems, []);
    history.replaceState(null, "", Settings.write(lab.settings));
    show();
    restart();
  }

  // The run

  function restart() {
    const { V, b, skew, d, scale, start, rate, steps, loss, seed } = lab.settings;
    const counts = Toy.zipfCounts(b, V, skew);
    const begun = Toy.start({ counts, width: d, scale, kind: start, seed });
    lab.counts = counts;
    lab.run = Toy.descent({ ...begun, counts, width: d, loss, rate, record: Toy.logSteps(steps, RECORDS) });
    lab.stale = true;
    nodes.root.dataset.state = "computing";
    wake();
  }

  function wake() {
    if (!lab.frame) lab.frame = requestAnimationFrame(frame);
  }

  function frame(now) {
    const elapsed = lab.playing && lab.before ? now - lab.before : 0;
    lab.before = now;
    lab.frame = null;
    if (!Toy.finished(lab.run)) {
      Toy.advance(lab.run, lab.playing ? SLICE.playing : SLICE.waiting);
      lab.stale = lab.stale || now > lab.due || Toy.finished(lab.run);
    }
    if (lab.stale) refresh();
    move(elapsed);
    draw();
    if (lab.playing || !Toy.finished(lab.run)) wake();
    else lab.before = null;
  }

  function move(elapsed) {
    const last = lab.view.steps.length - 1, done = Toy.finished(lab.run);
    if (lab.playing) {
      lab.cursor += elapsed / 1000 * lab.speed * (lab.run.record.length - 1) / SWEEP;
      if (elapsed > 0) measureRate(elapsed);
      if (done && lab.cursor >= last) play(false);
    }
    if (lab.cursor > last || (lab.following && !lab.playing)) lab.cursor = last;
  }

  function measureRate(elapsed) {
    lab.frames += 1;
    lab.elapsed += elapsed;
    lab.fps = 1000 * lab.frames / lab.elapsed;
  }

  // Everything that follows from the records, and the pictures of the curves.
  function refresh() {
    const began = performance.now();
    const records = drawn(lab.run), steps = records.map((record) => record.step);
    const found = Toy.phases(records.map((record) => record[lab.settings.rankme]), lab.settings.size / 100);
    const spans = lab.run.diverged === null ? found.spans : [];
    lab.view = { records, steps, spans, ...projection(records) };
    const common = { steps, spans, lastStep: lab.run.diverged === null ? lab.settings.steps
      : Math.max(1, steps.at(-1)) };
    nodes.which.textContent = ` of the ${lab.settings.rankme} features; thin: ${OTHER[lab.settings.rankme]}`;
    nodes.curves.forEach((curve, index) => {
      curve.lines = LINES[index](records);
      curve.at = Plot.curves(curve.picture, curve.canvas.clientWidth,
                             { ...common, ...AXES[index](), lines: curve.lines });
    });
    if (Toy.finished(lab.run)) report(found);
    const ended = performance.now();
    Object.assign(lab, { stale: false, due: ended + Math.max(REFRESH.least, (ended - began) / REFRESH.share) });
  }

  // The records to draw: of a run that has diverged, those before the loss leaves the scale of all others, and of one
  // that leaves it at once, the first two.
  function drawn({ records, diverged }) {
    const beyond = diverged === null ? -1 : records.findIndex(({ loss }) => !(loss <= CEILING * records[0].loss));
    return records.slice(0, beyond < 0 ? undefined : Math.max(beyond, 2));
  }

  const column = (records, pick) => records.map((record) => record[pick]);
  const AXES = [
    () => ({ label: "RankMe" }),
    () => ({ label: "singular values", low: 0 }),
    () => ({ label: LOSS_LABELS[lab.settings.loss], low: 0 }),
  ];
  const LINES = [
    (records) => [
      { values: column(records, OTHER[lab.settings.rankme]), colour: Plot.theme().faint, width: 1.2,
        guest: true },
      { values: column(records, lab.settings.rankme), colour: Plot.theme().ink, width: 2.2, dash: "phase" },
    ],
    (records) => ["featureValues", "classifierValues"].flatMap((pick) => Array.from(records[0][pick], (_, k) => ({
      values: column(records, pick).map((values) => values[k]), colour: Plot.colour(k, records[0].featureValues.length),
      width: pick === "featureValues" ? 2 : 1.2, dash: pick === "featureValues" ? [] : [2, 3] }))),
    (records) => [{ values: column(records, "loss"), colour: Plot.theme().ink, width: 2 }],
  ];

  // Trails of class vectors and features in the plane that is drawn, and half the side it needs at each record.
  function projection(records) {
    const { samples, width, classes, labels } = lab.run;
    const every = Math.max(1, Math.floor(records.length / 12));
    const axes = width > 2 ? Toy.directions(records.filter((_, k) => k % every === 0), lab.run).slice(0, 2).map(upright)
      : [[1, 0], [0, width > 1 ? 1 : 0]];
    const along = (axis, at) => axis.slice(0, width).reduce((total, x, j) => total + x * at(j), 0);
    const trail = (matrix, at) => records.map(
      (record) => axes.map((axis) => along(axis, (j) => record[matrix][at(j)])));
    const vectors = Array.from({ length: classes }, (_, k) => ({
      trail: trail("W", (j) => j * classes + k), colour: Plot.colour(k, classes) }));
    const features = Array.from({ length: samples }, (_, i) => ({
      trail: trail("F", (j) => i * width + j), colour: Plot.colour(labels[i], classes) }));
    const extents = records.map((_, k) => 1.18 * Math.max(1e-12, ...[...vectors, ...features].flatMap(
      (one) => one.trail[k].map(Math.abs))));
    return { vectors, features, extents };
  }

  // A direction's sign is free: the largest component is taken positive, so that pictures do not flip.
  function upright(axis) {
    const largest = axis.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0);
    return largest < 0 ? axis.map((x) => -x) : axis;
  }

  function draw() {
    const { records } = lab.view, k = Math.floor(lab.cursor), next = Math.min(k + 1, records.length - 1);
    const part = lab.cursor - k, between = (x, y) => x + part * (y - x);
    const now = (one) => one.trail[k].map((x, axis) => between(x, one.trail[next][axis]));
    const { extents, spans, steps } = lab.view, name = lab.run.width > 2 ? "direction" : "coordinate";
    const [vectors, features] = [lab.view.vectors, lab.view.features].map(
      (things) => things.map((one) => ({ ...one, now: now(one) })));
    Plot.plane(nodes.plane, {
      vectors, features, extent: between(extents[k], extents[next]), spans, last: k,
      xlabel: name + " 1", ylabel: name + " 2" });
    const step = between(steps[k], steps[next]);
    for (const { canvas, picture, at, lines } of nodes.curves) {
      const points = lines.map((one) => ({ value: between(one.values[k], one.values[next]), colour: one.colour }));
      Plot.cursor(canvas, picture, at, step, points);
    }
    readout(records[k]);
  }

  // Words

  function say(node, lines) {
    node.replaceChildren(...lines.map((text) => element("p", {}, text)));
    node.hidden = !lines.length;
  }

  function digits(value) {
    return Number.isFinite(value) ? Number(value.toPrecision(3)).toString() : "–";
  }

  function fixed(value) {
    return Number.isFinite(value) ? value.toFixed(2) : "–";
  }

  function readout(record) {
    const last = lab.view.steps.length - 1;
    nodes.readout.textContent = `step ${record.step.toLocaleString("en")} · RankMe ${fixed(record.centred)} · `
      + `loss ${digits(record.loss)} · ${record.right} of ${lab.run.samples} samples right`;
    nodes.scrub.max = lab.run.record.length - 1;
    nodes.scrub.value = Math.floor(lab.cursor);
    nodes.scrub.setAttribute("aria-valuetext", "step " + record.step);
    nodes.root.dataset.step = record.step;
    nodes.fps.textContent = lab.fps && lab.playing ? `${Math.round(lab.fps)} frames a second` : "";
    nodes.back.disabled = lab.cursor <= 0;
    nodes.forward.disabled = lab.cursor >= last;
  }

  function report(found) {
    const { records, diverged } = lab.run;
    const seen = (name) => diverged === null && found.spans.find((one) => one.phase === name);
    const names = Object.keys(Plot.STYLE.phase_colours).filter((name) => name !== "later" || seen(name));
    nodes.phases.replaceChildren(...names.map((name) => {
      const span = seen(name), absent = diverged === null ? missing(name, found) : "cannot be told: the run diverges";
      return element("li", { "data-phase": name, class: span ? "" : "lab-absent",
                             style: `border-color: ${Plot.STYLE.phase_colours[name]}` },
                     element("b", {}, name), " " + (span ? description(span, records) : absent));
    }));
    nodes.counts.replaceChildren(...lab.counts.map((count, k) => element("span", {},
      element("i", { style: `background:${Plot.colour(k, lab.counts.length)}` }), `${k + 1}: ${count}`)));
    say(nodes.warnings, warnings(lab.run));
    nodes.root.dataset.state = diverged === null ? "done" : "diverged";
  }

  function missing(name, { anyFall }) {
    const { size } = lab.settings;
    if (name !== "compression-seeking" || !(anyFall > size / 100)) return `not seen (over ${size} %)`;
    return `does not last: a fall of ${(100 * anyFall).toFixed(1)} % is outgrown`;
  }

  function description({ first, last, change, to }, records) {
    return `steps ${records[first].step} to ${records[last].step}: RankMe ${change > 0 ? "grows" : "falls"} by `
      + `${(100 * Math.abs(change)).toFixed(1)} % to ${fixed(to)}`;
  }

  // With squared error the loss has a curvature of 2 sqrt(n) at its minimum, n the largest class: see exercise 7.
  function slower({ rate, loss }) {
    const limit = 1 / Math.sqrt(Math.max(...lab.counts));
    return loss === "squared" && rate > limit
      ? `Try a rate below ${limit.toFixed(2)}, the limit for a largest class of ${Math.max(...lab.counts)}`
      : `Try a rate of ${digits(rate / 3)} or less`;
  }

  function warnings(run) {
    const { records, diverged } = run, advice = slower(run);
    if (diverged !== null) {
      const last = lab.view.steps.at(-1), why = last > 1 ? `, before the loss is over ${CEILING} times the first` : "";
      return [`Diverged at step ${diverged}: the weights are no longer finite numbers. ${advice}. `
        + `(Drawn: steps 0 to ${last}${why}.)`];
    }
    const least = 1e-9 * records[0].loss;  // more than rounding
    const rise = records.find((record, k) => k && record.loss > records[k - 1].loss + least);
    return rise ? [`The loss rises before step ${rise.step}: steps of this size leap over the valley. ${advice} to `
      + "stay near gradient flow."] : [];
  }

  // Controls

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function slider(control) {
    const { key, low, high, log, step } = control, id = "lab-" + key;
    const place = log ? { min: Math.log10(low), max: Math.log10(high), step: "any" }
      : { min: low, max: high, step: step || 1 };
    const input = element("input", { id, type: "range", ...place }), output = element("output", { for: id });
    input.addEventListener("input", () => {
      const value = log ? Number(Math.pow(10, input.value).toPrecision(2)) : Number(input.value);
      set(key, Math.min(high, Math.max(low, value)));
    });
    if (log) input.addEventListener("keydown", (event) => decade(event, control));
    nodes.controls[key] = (value) => {
      input.value = log ? Math.log10(value) : value;
      input.setAttribute("aria-valuetext", value);
      output.textContent = value.toLocaleString("en", { maximumSignificantDigits: 3 });
    };
    return element("div", { class: "lab-control" }, element("label", { for: id }, control.label), output, input);
  }

  // Arrow keys move a logarithmic slider along 1, 2, 5, 10.
  function decade(event, { key, low, high }) {
    const up = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!up) return;
    event.preventDefault();
    const powers = Array.from({ length: 12 }, (_, k) => Math.pow(10, k - 5));
    const stops = powers.flatMap((power) => [1, 2, 5].map((factor) => Number((factor * power).toPrecision(1))));
    const now = lab.settings[key];
    const next = up > 0 ? stops.find((stop) => stop > now * 1.001) : stops.reverse().find((stop) => stop < now * 0.999);
    set(key, Math.min(high, Math.max(low, next)));
  }

  function choice(control) {
    const id = "lab-" + control.key;
    const select = element("select", { id }, ...control.choices.map((name) => element("option", {}, name)));
    select.addEventListener("change", () => set(control.key, select.value));
    nodes.controls[control.key] = (value) => (select.value = value);
    return element("div", { class: "lab-control" }, element("label", { for: id }, control.label), select);
  }

  // `text` is a sign, hidden from those who hear the label, or the beginning of the label.
  function button(text, label, act) {
    const sign = label.startsWith(text) ? text : element("span", { "aria-hidden": "true" }, text);
    const node = element("button", { type: "button", "aria-label": label, title: label }, sign);
    node.addEventListener("click", act);
    return node;
  }

  function show() {
    for (const { key } of CONTROLS) nodes.controls[key](lab.settings[key]);
  }

  function play(on) {
    const last = lab.view.steps.length - 1;
    if (on && Toy.finished(lab.run) && lab.cursor >= last) lab.cursor = 0;
    Object.assign(lab, { playing: on, following: !on && lab.cursor >= last, frames: 0, elapsed: 0, before: null });
    nodes.play.firstChild.textContent = on ? "❚❚" : "▶";
    nodes.play.setAttribute("aria-label", on ? "pause" : "play");
    nodes.play.title = on ? "pause (space)" : "play (space)";
    nodes.root.dataset.playing = on;
    wake();
  }

  function go(to) {
    if (lab.playing) play(false);
    const last = lab.view.steps.length - 1;
    lab.cursor = Math.min(last, Math.max(0, to));
    lab.following = lab.cursor >= last && Toy.finished(lab.run);
    wake();
  }

  function reset() {
    say(nodes.problems, []);
    lab.settings = { ...DEFAULTS };
    history.replaceState(null, "", Settings.write(lab.settings));
    show();
    restart();
  }

  async function copy() {
    history.replaceState(null, "", Settings.write(lab.settings));
    try {
      await navigator.clipboard.writeText(location.href);
      nodes.copied.textContent = "copied";
    } catch {
      nodes.copied.textContent = "no clipboard here: copy it from the browser's address line";
    }
  }

  // Keys work where no control has the focus that needs them itself.
  function keys(event) {
    if (event.target.closest("input, select, button, a") || event.ctrlKey || event.metaKey || event.altKey) return;
    const acts = { " ": () => play(!lab.playing), ArrowRight: () => go(Math.floor(lab.cursor) + 1),
                   ArrowLeft: () => go(Math.ceil(lab.cursor) - 1), Home: () => go(0), End: () => go(Infinity) };
    if (!acts[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
  }

  // The page

  function panel(title, note, canvas) {
    return element("figure", {}, element("figcaption", {}, element("b", {}, title), note ? " " + note : ""), canvas);
  }

  function transport() {
    nodes.play = button("▶", "play", () => play(!lab.playing));
    nodes.back = button("◀|", "one recorded step back", () => go(Math.ceil(lab.cursor) - 1));
    nodes.forward = button("|▶", "one recorded step on", () => go(Math.floor(lab.cursor) + 1));
    nodes.scrub = element("input", { type: "range", min: 0, value: 0, step: 1, "aria-label": "moment shown" });
    nodes.scrub.addEventListener("input", () => go(Number(nodes.scrub.value)));
    const speed = element("select", { "aria-label": "speed" },
      ...[0.25, 0.5, 1, 2, 4].map((value) => element("option", { value }, value + "×")));
    speed.value = 1;
    speed.addEventListener("change", () => (lab.speed = Number(speed.value)));
    const first = button("|◀◀", "to the start", () => go(0));
    return element("div", { class: "lab-transport" }, first, nodes.back, nodes.play, nodes.forward, nodes.scrub, speed);
  }

  function actions() {
    nodes.copied = element("span", { role: "status" });
    nodes.fps = element("span", { class: "lab-fps" });
    const full = button("full screen", "full screen", () => (document.fullscreenElement
      ? document.exitFullscreen() : nodes.root.requestFullscreen()));
    return element("div", { class: "lab-actions" }, button("reset", "reset all settings", reset),
                   button("copy the address", "copy the address of this setting", copy),
                   ...(document.fullscreenEnabled ? [full] : []), nodes.copied, nodes.fps);
  }

  function build(root) {
    Object.assign(nodes, { root, controls: {} });
    nodes.problems = element("div", { class: "lab-message", role: "alert", hidden: "" });
    nodes.warnings = element("div", { class: "lab-message", role: "alert", hidden: "" });
    nodes.readout = element("output", { class: "lab-readout" });
    nodes.phases = element("ul", { class: "lab-phases", "aria-label": "phases found", "aria-live": "polite" });
    nodes.counts = element("span", { class: "lab-counts" });
    nodes.plane = element("canvas", { role: "img", "aria-label": "class vectors and features in the plane" });
    nodes.curves = ["RankMe by step", "singular values by step", "loss by step"].map((label) => ({
      canvas: element("canvas", { role: "img", "aria-label": label }), picture: document.createElement("canvas") }));
    const controls = element("div", { class: "lab-controls" },
                             ...CONTROLS.map((control) => (control.choices ? choice(control) : slider(control))));
    const vectors = panel("Class vectors", "(arrows) and features (dots)", nodes.plane);
    vectors.append(element("div", {}, "samples by class: ", nodes.counts), nodes.phases);
    const curves = [["RankMe", ""], ["Singular values", "of F; dotted: of W"], ["Loss", ""]].map(([title, note], k) =>
      panel(title, note, nodes.curves[k].canvas));
    nodes.which = element("span");
    curves[0].querySelector("figcaption").append(nodes.which);
    const stage = element("div", { class: "lab-stage", tabindex: 0, role: "group", "aria-label":
      "pictures of the run: space plays and pauses, left and right arrow step, Home and End jump" },
      element("div", {}, vectors), element("div", {}, ...curves));
    root.replaceChildren(controls, nodes.problems, nodes.warnings, transport(), nodes.readout, stage, actions());
    stage.addEventListener("keydown", keys);
    new ResizeObserver(() => { lab.stale = true; wake(); }).observe(root);
    new MutationObserver(() => { lab.stale = true; wake(); })
      .observe(document.documentElement, { attributeFilter: ["data-theme"] });
    addEventListener("hashchange", arrive);
    // a link to the address that stands there already changes nothing, and no event tells of it
    addEventListener("click", ({ target }) => {
      const link = target.closest?.("a[href^='#']");
      if (link && link.hash === location.hash) arrive();
    });
  }

  function arrive() {
    adopt();
    if (location.hash.includes("=")) nodes.root.scrollIntoView();
  }

  build(document.getElementById("lab"));
  adopt();
  if (!lab.run) {  // the address is an anchor
    show();
    restart();
  }
  window.Lab = { state: lab, curves: () => nodes.curves };
})();
