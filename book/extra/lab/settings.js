// What can be set in the lab, and how an address names it. Touches no page.
"use strict";

(function () {
  // What can be set: `key` in the address; `log`: the slider moves by decades; `choices`: no number but one of these.
  const CONTROLS = [
    { key: "V", label: "classes V", low: 2, high: 12, whole: true },
    { key: "b", label: "samples b", low: 2, high: 60, whole: true },
    { key: "skew", label: "class skew (Zipf)", low: 0, high: 5, step: 0.05 },
    { key: "d", label: "width d", low: 1, high: 12, whole: true },
    { key: "scale", label: "start scale, or jitter", low: 0.00001, high: 3, log: true },
    { key: "start", label: "start", choices: ["free", "balanced", "constructed"] },
    { key: "rate", label: "rate", low: 0.001, high: 3, log: true },
    { key: "steps", label: "steps", low: 100, high: 50000, whole: true, log: true },
    { key: "loss", label: "loss", choices: ["cross-entropy", "squared"] },
    { key: "seed", label: "seed", low: 0, high: 99, whole: true },
    { key: "rankme", label: "RankMe for the phases", choices: ["centred", "uncentred"] },
    { key: "size", label: "changes that count (%)", low: 0.1, high: 10, log: true },
  ];
  // A start picked for showing all three phases, which few do: the page says how few.
  const DEFAULTS = { V: 4, b: 20, skew: 1.5, d: 2, scale: 0.1, start: "balanced", rate: 0.05, steps: 2000,
                     loss: "cross-entropy", seed: 38, rankme: "centred", size: 2 };

  function parse(control, text) {
    if (control.choices) return control.choices.includes(text) ? text : null;
    const value = text.trim() === "" ? NaN : Number(text);
    const fits = value >= control.low && value <= control.high && (!control.whole || Number.isInteger(value));
    return fits ? value : null;
  }

  function expected(control) {
    if (control.choices) return "one of " + control.choices.join(", ");
    return `${control.whole ? "a whole number" : "a number"} from ${control.low} to ${control.high}`;
  }

  // The settings that an address names, the defaults for the rest, and what was wrong with it.
  function read(address) {
    const settings = { ...DEFAULTS }, problems = [];
    for (const [key, text] of new URLSearchParams(address.replace(/^#/, ""))) {
      const control = CONTROLS.find((one) => one.key === key);
      if (!control) {
        problems.push(`“${key}” is no setting; there are ${CONTROLS.map((known) => known.key).join(", ")}.`);
        continue;
      }
      const value = parse(control, text);
      if (value !== null) settings[key] = value;
      else problems.push(`${key} = “${text}”: expected ${expected(control)}; ${DEFAULTS[key]} is used.`);
    }
    const { V, b, start } = settings;
    if (start === "constructed" && V < 3) {
      problems.push("A constructed start needs a class beside the two rare ones; V = 3 is used.");
    }
    if (b < V) problems.push(`${b} samples for ${V} classes: each class needs one; b = ${V} is used.`);
    return { settings: fit(settings), problems };
  }

  // Settings that go together: what was not moved gives way to what was (`moved`, a key).
  function fit(settings, moved) {
    const { V, b, start } = settings, fitted = { ...settings };
    if (start === "constructed" && V < 3) Object.assign(fitted, moved === "V" ? { start: "free" } : { V: 3 });
    if (b < fitted.V) Object.assign(fitted, moved === "b" ? { V: b } : { b: fitted.V });
    if (fitted.start === "constructed" && fitted.V < 3) fitted.start = "free";
    return fitted;
  }

  // The address, from # on, that names these settings.
  function write(settings) {
    return "#" + CONTROLS.map(({ key }) => `${key}=${settings[key]}`).join("&");
  }

  window.Settings = { CONTROLS, DEFAULTS, read, write, fit };
})();
