// Draws on canvases what it is given and computes no result. Colours and line styles are those of
// lib/reptrace/report/figures.py; tests/report/test_lab.py compares them.
"use strict";

(function () {
  const STYLE = {
    "phase_colours": {"warmup": "#9e9e9e", "entropy-seeking": "#4c9f70", "compression-seeking": "#c9684f",
                      "later": "#8a7fb5"},
    "phase_lines": {"warmup": ":", "entropy-seeking": "-", "compression-seeking": "--", "later": "-."},
    "palette": ["#90c391", "#79b891", "#65ad90", "#55a290", "#47978f", "#3a8b8e", "#2d808c", "#22748b", "#1c6789",
                "#1f5b86", "#244d80", "#2a3f78"]
  };
  const DASHES = { ":": [1.5, 3], "-": [], "--": [7, 3.5], "-.": [7, 3, 1.5, 3] };
  const SHADE = 0.13;  // opacity of a phase's shade
  // Canvases are transparent: the paper is the page's, light or dark. `mixed`: share of white in the palette.
  const THEMES = {
    light: { ink: "#222222", faint: "#767676", grid: "#dddddd", paper: "#ffffff", mixed: 0, shade: SHADE },
    dark: { ink: "#e6e6e6", faint: "#9a9a9a", grid: "#444a52", paper: "#121212", mixed: 0.4, shade: 2 * SHADE },
  };
  const FONT = "12px system-ui, sans-serif";
  const MARGIN = { left: 46, right: 10, top: 8, bottom: 36 };
  const ZERO_WIDTH = 0.4;  // decades between step 0 and step 1

  function theme() {
    return THEMES[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
  }

  // Colour of one of `count` things in order, from dark (the first) to light; all lighter on dark paper.
  function colour(index, count) {
    const last = STYLE.palette.length - 1, { mixed } = theme();
    const chosen = STYLE.palette[last - (count > 1 ? Math.round(index * last / (count - 1)) : 0)];
    const parts = [1, 3, 5].map((at) => parseInt(chosen.slice(at, at + 2), 16));
    return "#" + parts.map((x) => Math.round(x + mixed * (255 - x)).toString(16).padStart(2, "0")).join("");
  }

  // Context of a canvas of this many CSS pixels, sharp on every screen, cleared.
  function paper(canvas, width, height) {
    const dots = window.devicePixelRatio || 1, across = Math.round(width * dots), down = Math.round(height * dots);
    if (canvas.width !== across || canvas.height !== down) {
      Object.assign(canvas, { width: across, height: down });
      canvas.style.height = height + "px";
    }
    const context = canvas.getContext("2d");
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    return context;
  }

  function curveHeight(width) {
    return Math.round(Math.min(200, Math.max(170, 0.5 * width)));
  }

  // Position of a step on an axis that is logarithmic from 1 on, with room for step 0, in decades.
  function decades(step) {
    return step < 1 ? step * ZERO_WIDTH : ZERO_WIDTH + Math.log10(step);
  }

  function linearTicks(low, high) {
    const rough = (high - low) / 4, power = Math.pow(10, Math.floor(Math.log10(rough)));
    const size = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const first = Math.ceil(low / size - 1e-9);
    const count = Math.floor(high / size + 1e-9) - first + 1;
    const digits = Math.max(0, -Math.floor(Math.log10(size) + 1e-9));
    const text = (value) => (digits > 3 || size >= 1e4 ? Number(value.toPrecision(2)).toExponential().replace("+", "")
      : value.toFixed(digits));
    return Array.from({ length: count }, (_, k) => [(first + k) * size, first + k ? text((first + k) * size) : "0"]);
  }

  // Lower and upper end of the axis for these values, with some room; a constant gets room as well.
  function range(values, low) {
    const real = values.filter(Number.isFinite);
    if (!real.length) return [0, 1];
    let bottom = Math.min(...real), top = Math.max(...real);
    if (low !== undefined) bottom = Math.min(bottom, low);
    const room = 0.05 * (top - bottom) || 0.05 * Math.abs(top) || 0.5;
    return [low !== undefined && bottom >= low ? low : bottom - room, top + room];
  }

  function scales(width, height, lastStep, [low, high]) {
    const inner = width - MARGIN.left - MARGIN.right, tall = height - MARGIN.top - MARGIN.bottom;
    return {
      x: (step) => MARGIN.left + inner * decades(step) / decades(lastStep),
      y: (value) => MARGIN.top + tall * (1 - (value - low) / (high - low)),
      top: MARGIN.top, bottom: MARGIN.top + tall, left: MARGIN.left, right: MARGIN.left + inner,
    };
  }

  function axes(context, at, lastStep, [low, high], label) {
    context.strokeStyle = context.fillStyle = theme().ink;
    context.lineWidth = 1;
    context.setLineDash([]);
    context.strokeRect(at.left, at.bottom, at.right - at.left, 0);
    context.strokeRect(at.left, at.top, 0, at.bottom - at.top);
    context.textAlign = "center";
    const powers = Array.from({ length: Math.floor(Math.log10(lastStep)) + 1 }, (_, k) => Math.pow(10, k));
    for (const step of [0, ...powers]) {
      context.strokeRect(at.x(step), at.bottom, 0, 4);
      context.fillText(step < 1000 ? String(step) : step / 1000 + "k", at.x(step), at.bottom + 16);
    }
    context.fillText("step", (at.left + at.right) / 2, at.bottom + 31);
    context.textAlign = "right";
    for (const [value, text] of linearTicks(low, high)) {
      context.strokeRect(at.left - 4, at.y(value), 4, 0);
      context.fillText(text, at.left - 7, at.y(value) + 4);
    }
    context.save();
    context.translate(11, (at.top + at.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(label, 0, 0);
    context.restore();
  }

  function shade(context, at, steps, spans) {
    context.globalAlpha = theme().shade;
    for (const { phase, first, last } of spans) {
      context.fillStyle = STYLE.phase_colours[phase];
      context.fillRect(at.x(steps[first]), at.top, at.x(steps[last]) - at.x(steps[first]), at.bottom - at.top);
    }
    context.globalAlpha = 1;
  }

  // Polyline through points first..last; `point` gives [x, y]. Values that are no numbers leave a gap.
  function line(context, first, last, point) {
    context.beginPath();
    for (let k = first, drawing = false; k <= last; k++) {
      const [x, y] = point(k);
      if (Number.isFinite(x) && Number.isFinite(y)) {
        if (drawing) context.lineTo(x, y);
        else context.moveTo(x, y);
        drawing = true;
      } else drawing = false;
    }
    context.stroke();
  }

  // The same in the line style of each phase, solid where none was found.
  function phasedLine(context, spans, last, point) {
    let reached = 0;
    for (const span of [...spans, { phase: null, first: last, last }]) {
      context.setLineDash([]);
      line(context, reached, Math.min(span.first, last), point);
      context.setLineDash(DASHES[STYLE.phase_lines[span.phase] || "-"]);
      line(context, Math.min(span.first, last), Math.min(span.last, last), point);
      reached = Math.min(span.last, last);
    }
    context.setLineDash([]);
  }

  // Curves by step. `view`: steps, lastStep, spans, label, low (optional lower end of the axis), and lines, each with
  // values, colour, width, dash ("phase" for the styles of the phases); a `guest` does not set the axis, and is cut off
  // at its ends. Returns the scales, for the cursor.
  function curves(picture, width, view) {
    const height = curveHeight(width), context = paper(picture, width, height);
    const limits = range(view.lines.flatMap((one) => (one.guest ? [] : Array.from(one.values))), view.low);
    const at = scales(width, height, view.lastStep, limits);
    shade(context, at, view.steps, view.spans);
    axes(context, at, view.lastStep, limits, view.label);
    context.lineJoin = "round";
    context.save();
    context.beginPath();
    context.rect(at.left, at.top, at.right - at.left, at.bottom - at.top);
    context.clip();
    for (const one of view.lines) {
      const point = (k) => [at.x(view.steps[k]), at.y(one.values[k])];
      context.strokeStyle = one.colour;
      context.lineWidth = one.width;
      if (one.dash === "phase") phasedLine(context, view.spans, one.values.length - 1, point);
      else {
        context.setLineDash(one.dash || []);
        line(context, 0, one.values.length - 1, point);
      }
    }
    context.restore();
    return at;
  }

  // The moment shown: a vertical line and a point on every curve, over a picture of the curves.
  function cursor(canvas, picture, at, step, points) {
    const width = canvas.clientWidth, height = curveHeight(width), context = paper(canvas, width, height);
    context.drawImage(picture, 0, 0, width, height);
    context.strokeStyle = theme().ink;
    context.lineWidth = 1;
    context.strokeRect(at.x(step), at.top, 0, at.bottom - at.top);
    for (const { value, colour: fill } of points) {
      const y = at.y(value);
      if (y >= at.top && y <= at.bottom) disc(context, at.x(step), y, 3.5, fill);
    }
  }

  function disc(context, x, y, radius, fill) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = fill;
    context.fill();
    context.strokeStyle = theme().paper;
    context.lineWidth = 1;
    context.stroke();
  }

  // Class vectors (arrows) and features (discs) in the plane with the way that each has come.
  // `view`: extent (half the side, in the unit of the vectors), xlabel, ylabel, spans, last (index of the last point
  // of the trails) and vectors, features: lists of {trail: [[x, y], ...], now: [x, y], colour}.
  function plane(canvas, view) {
    const width = canvas.clientWidth, inner = width - MARGIN.left - MARGIN.right;
    const context = paper(canvas, width, inner + MARGIN.top + MARGIN.bottom);
    const middle = [MARGIN.left + inner / 2, MARGIN.top + inner / 2], unit = inner / 2 / view.extent;
    const place = ([x, y]) => [middle[0] + unit * x, middle[1] - unit * y];
    frame(context, middle, inner, unit, view);
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top, inner, inner);
    context.clip();
    for (const [things, thickness, alpha] of [[view.features, 1, 0.45], [view.vectors, 2, 1]]) {
      context.globalAlpha = alpha;
      context.lineWidth = thickness;
      for (const { trail, now, colour: ink } of things) {
        context.strokeStyle = ink;
        phasedLine(context, view.spans, view.last, (k) => place(trail[k]));
        line(context, 0, 1, (k) => place(k ? now : trail[view.last]));
      }
    }
    context.globalAlpha = 1;
    for (const { now, colour: fill } of view.features) disc(context, ...place(now), 4, fill);
    view.vectors.forEach(({ now, colour: fill }, k) => arrow(context, middle, place(now), fill, String(k + 1)));
    context.restore();
  }

  function frame(context, middle, inner, unit, view) {
    const left = middle[0] - inner / 2, bottom = middle[1] + inner / 2;
    context.strokeStyle = context.fillStyle = theme().ink;
    context.lineWidth = 1;
    context.strokeRect(left, bottom - inner, inner, inner);
    context.strokeStyle = theme().grid;
    context.strokeRect(left, middle[1], inner, 0);
    context.strokeRect(middle[0], bottom - inner, 0, inner);
    for (const [value, text] of linearTicks(-view.extent, view.extent)) {
      context.textAlign = "center";
      context.fillText(text, middle[0] + unit * value, bottom + 16);
      context.textAlign = "right";
      context.fillText(text, left - 5, middle[1] - unit * value + 4);
    }
    context.textAlign = "center";
    context.fillText(view.xlabel, middle[0], bottom + 31);
    context.save();
    context.translate(11, middle[1]);
    context.rotate(-Math.PI / 2);
    context.fillText(view.ylabel, 0, 0);
    context.restore();
  }

  function arrow(context, [x0, y0], [x, y], fill, name) {
    const angle = Math.atan2(y - y0, x - x0), head = 10;
    context.strokeStyle = context.fillStyle = fill;
    context.lineWidth = 2.5;
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x, y);
    context.stroke();
    if (Math.hypot(x - x0, y - y0) < 3) return;
    context.beginPath();
    context.moveTo(x, y);
    for (const side of [angle - 0.4, angle + 0.4]) context.lineTo(x - head * Math.cos(side), y - head * Math.sin(side));
    context.fill();
    context.textAlign = "center";
    context.fillStyle = theme().ink;
    context.fillText(name, x + 9 * Math.cos(angle), y + 9 * Math.sin(angle) + 4);
  }

  window.Plot = { STYLE, theme, colour, curves, cursor, plane };
})();
