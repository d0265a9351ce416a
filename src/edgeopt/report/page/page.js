"use strict";
// What a mark of a chart stands for, beside the pointer. The page is whole without it.
const tip = document.getElementById("tip");
const place = (event) => {
  const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("data-tip");
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const over = event.clientY + 18 + box.height > innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (over ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
};
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, place);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
// A table that is wider than its frame can be scrolled with the keyboard.
for (const frame of document.querySelectorAll(".table")) {
  if (frame.scrollWidth <= frame.clientWidth) continue;
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", frame.dataset.name);
}
