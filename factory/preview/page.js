const about = document.getElementById("about");
let now = null;
function tell(token) {
  if (now) now.classList.remove("now");
  now = token;
  about.hidden = !token;
  if (!token) return;
  const run = token.closest("mark"), ids = token.dataset.ids.split(" ");
  const all = token.closest(".tokens").querySelectorAll("i");
  const place = Array.prototype.indexOf.call(all, token) + 1;
  about.textContent = `${place} of ${all.length} · id${ids.length > 1 ? "s" : ""} ${ids.join(", ")} · `
    + (run ? `trained, weight ${run.dataset.weight}` : "masked") + ` · “${token.textContent}”`;
}
const tokenAt = (event) => event.target.closest && event.target.closest(".side .tokens i");
document.addEventListener("mouseover", (event) => tell(tokenAt(event)));
document.addEventListener("click", (event) => { const token = tokenAt(event); if (token) tell(token); });
for (const box of document.querySelectorAll(".side .tokens")) {
  box.addEventListener("keydown", (event) => {
    const all = [...box.querySelectorAll("i")], at = all.indexOf(now);
    const to = {ArrowRight: at + 1, ArrowLeft: Math.max(at, 1) - 1, Home: 0, End: all.length - 1}[event.key];
    if (event.key === "Escape") return tell(null);
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey || !all[to]) return;
    event.preventDefault();
    tell(all[to]);
    now.classList.add("now");
    now.scrollIntoView({block: "nearest"});
  });
  box.addEventListener("blur", () => tell(null));
}
document.getElementById("bounds").addEventListener("change", (event) =>
  document.body.classList.toggle("bounds", event.target.checked));
