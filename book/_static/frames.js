// A table or figure wider than the page scrolls in a frame of its own, with a shadow at the edge where more of it lies.
// Only while it does is the frame a stop of the Tab key, with a name. A figure is not made narrower than legible.
(() => {
  const LEGIBLE = 0.6; // of a figure's own pixels: the smallest letters are nine pixels high then

  const named = (node) => {
    const caption = node.closest("figure")?.querySelector("figcaption") || node.querySelector("caption");
    const text = caption?.innerText || node.alt || document.querySelector("h1")?.innerText || "";
    return `${node.tagName === "TABLE" ? "Table" : "Figure"}, scrolls sideways: ${text.replace(/\s*#?\s*$/, "").slice(0, 120)}`;
  };

  const framed = (node) => {
    const edge = Object.assign(document.createElement("div"), { className: "edge" });
    const frame = Object.assign(document.createElement("div"), { className: "frame" });
    const hint = Object.assign(document.createElement("div"), { className: "hint", textContent: "scroll for more →" });
    hint.ariaHidden = "true";
    node.replaceWith(hint, edge);
    edge.append(frame);
    frame.append(node);
    const content = node.matches("a") ? node.querySelector("img") : node;
    const look = () => {
      const hidden = frame.scrollWidth - frame.clientWidth;
      frame.classList.toggle("cut", hidden > 1);
      hint.hidden = hidden <= 1;
      hint.classList.toggle("end", frame.scrollLeft >= hidden - 1);
      edge.classList.toggle("more-left", frame.scrollLeft > 1);
      edge.classList.toggle("more-right", frame.scrollLeft < hidden - 1);
      if (hidden > 1) {
        frame.tabIndex = 0;
        frame.setAttribute("role", "region");
        frame.setAttribute("aria-label", named(content));
      } else ["tabindex", "role", "aria-label"].forEach((name) => frame.removeAttribute(name));
    };
    frame.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(frame);
    new ResizeObserver(look).observe(node);
    look();
  };

  const legible = (image) => {
    const set = () => { image.style.minWidth = `${Math.round(LEGIBLE * image.naturalWidth)}px`; };
    image.complete ? set() : image.addEventListener("load", set);
  };

  // Code in a fold gets its tab stop once it is seen: the theme looks which code scrolls when the window changes.
  document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true);

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".bd-article table").forEach((table) => {
      if (!table.closest("#lab, table table")) framed(table);
    });
    document.querySelectorAll(".bd-article figure img").forEach((image) => {
      legible(image);
      framed(image.closest("a") || image);
    });
  });
})();
