const $ = (id) => document.getElementById(id);
const show = (id, on) => { $(id).hidden = !on; };
let photograph = null, limits = null, pending = null, answer = null;

/* What the server offers. */
fetch("healthz").then((r) => r.json()).then((health) => {
  limits = health.limits;
  $("model").textContent = health.model.name.replace(/^(shipped:|models:\/)/, "").replace(/\/(\d+)$/, ", version $1");
  health.model.scales.forEach((scale, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "scale", value: scale, checked: i === 0 });
    label.append(input, `×${scale}`);
    $("scales").append(label);
  });
  if (!photograph) describe();
}).catch(() => problem("The server does not answer."));

/* Choose: by the file dialogue, by dropping, by pasting. */
function describe() {
  $("drop").classList.toggle("empty", !photograph);
  if (!photograph) {
    const most = limits ? `, up to ${(limits.max_pixels / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} megapixels` : "";
    $("size").textContent = `or choose a file: PNG, JPEG, WebP, TIFF, BMP${most}`;
    return;
  }
  $("name").textContent = photograph.name;
  $("size").textContent = `${(photograph.size / 2 ** 20).toFixed(photograph.size < 2 ** 20 ? 2 : 1)} MiB`;
}
function choose(file) {
  if (!file) return;
  cancel();
  photograph = file;
  answer = null;
  problem("");
  show("result", false);
  describe();
  URL.revokeObjectURL($("preview").src);
  show("preview", false);
  const preview = $("preview");
  preview.onload = () => {
    show("preview", true);
    if (pending) enlarge(Number(chosen("scale")));
    $("size").textContent = `${preview.naturalWidth} × ${preview.naturalHeight} pixels, ${$("size").textContent}`;
  };
  preview.onerror = () => {};  // a TIFF, or no image at all: the server will say
  preview.src = URL.createObjectURL(file);
  $("go").disabled = false;
}
$("file").addEventListener("change", () => choose($("file").files[0]));
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));
for (const radio of document.querySelectorAll("[name=noise]")) radio.addEventListener("change", () => {
  document.querySelector(".level").hidden = chosen("noise") !== "given";
});
$("strength").addEventListener("input", () => { $("percent").textContent = `${$("strength").value}%`; });
const chosen = (name) => document.querySelector(`[name=${name}]:checked`)?.value;

/* Send, wait, show. */
function problem(text) { $("problem").textContent = text; show("problem", text !== ""); }
function cancel() { if (pending) pending.abort(); }
$("cancel").addEventListener("click", cancel);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!photograph || pending) return;
  const sigma = chosen("noise") === "auto" ? "auto" : Number($("level").value) / 255;
  answer = null;
  show("result", false);
  enlarge(Number(chosen("scale")));
  send({ pictures: "true", scale: chosen("scale"), sigma }, photograph, present);
});
/* Another strength needs no second estimate: the kernel and the noise level of the answer go back. */
$("strength").addEventListener("change", () => {
  if (!answer || !photograph) return;
  cancel();
  const first = answer, form = new FormData();
  form.append("kernel", JSON.stringify(first.kernel));
  form.append("image", photograph);
  const trust = first.trust ?? "auto";
  send({ scale: first.scale, sigma: first.sigma, trust }, form, (content) => {
    const { sigma_from, kernel_from, warnings, input, bicubic } = first;
    return again({ ...content, sigma_from, kernel_from, warnings, input, bicubic });
  });
});
async function send(wishes, body, then) {
  const query = new URLSearchParams({ strength: $("strength").value / 100, ...wishes });
  const own = pending = new AbortController();
  const ticking = setInterval(countDown, 250);
  problem("");
  show("busy", true);
  waiting("Sending the photograph …");
  $("go").disabled = true;
  try {
    const headers = { Accept: "text/event-stream" };
    const reply = await fetch(`restore?${query}`, { method: "POST", body, headers, signal: own.signal });
    const content = reply.ok ? await lastEvent(reply) : await reply.json();
    if (content.error === undefined) await then(content); else problem(content.error);
  } catch (error) {
    if (!own.signal.aborted) problem("The connection to the server broke off.");
  } finally {
    clearInterval(ticking);
    if (pending === own) {
      pending = null;
      show("busy", false);
      show("growing", false);
      $("go").disabled = false;
    }
  }
}

const png = (base64) => `data:image/png;base64,${base64}`;
async function present(content) {
  await again(content);
  show("result", true);
  fit();
  divide(50);
  $("stage").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}
async function again(content) {
  answer = content;
  $("after").src = png(content.image);
  left();
  await Promise.all([$("before"), $("after")].map((picture) => picture.decode()));
  $("kernel").src = png(content.kernel_png);
  facts([
    ["size", `${content.width} × ${content.height} pixels`],
    ["noise σ", `${(content.sigma * 255).toFixed(2)} of 255, ${content.sigma_from}`],
    ["strength", `${Math.round(content.strength * 100)}%`],
    ["trusted", content.trust === null ? "not judged" : `${Math.round(content.trust * 100)}%`],
    ["unexplained", `${(content.residual * 255).toFixed(2)} of 255`],
    ["time", `${Object.values(content.seconds).reduce((a, b) => a + b, 0).toFixed(1)} s`],
  ]);
  $("warnings").replaceChildren(...content.warnings.map((line) => Object.assign(document.createElement("li"), { textContent: line[0].toUpperCase() + line.slice(1) + "." })));
  show("warnings", content.warnings.length > 0);
  const stem = photograph.name.replace(/\.[^.]*$/, "");
  download("download", content.image, `${stem}-x${content.scale}.png`);
  download("download-kernel", content.kernel_png, `${stem}-x${content.scale}-kernel.png`);
}
function facts(rows) {
  $("facts").replaceChildren(...rows.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
}
function download(id, base64, name) {
  URL.revokeObjectURL($(id).href);
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  Object.assign($(id), { href: URL.createObjectURL(new Blob([bytes], { type: "image/png" })), download: name });
}

/* The picture on the left, and the divider. */
function left() {
  const name = chosen("left");
  Object.assign($("before"), { src: png(answer[name]), alt: name === "input" ? "The photograph as it came" : "Its bicubic enlargement" });
  $("left-name").textContent = name;
  $("handle").setAttribute("aria-label", `Divider between ${name} and restored`);
  draw();
}
for (const radio of document.querySelectorAll("[name=left]")) radio.addEventListener("change", left);
function divide(percent) {
  const at = Math.min(100, Math.max(0, percent));
  $("handle").setAttribute("aria-valuenow", Math.round(at));
  $("handle").setAttribute("aria-valuetext", `${Math.round(at)}% ${chosen("left")}`);
  $("handle").style.left = `${at}%`;
  $("right").style.clipPath = `inset(0 0 0 ${at}%)`;
}
const divider = () => Number($("handle").getAttribute("aria-valuenow"));
$("handle").addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 10 : 2;
  const to = { ArrowLeft: divider() - step, ArrowDown: divider() - step, ArrowRight: divider() + step, ArrowUp: divider() + step, PageDown: divider() - 10, PageUp: divider() + 10, Home: 0, End: 100 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  divide(to);
});

/* Zoom about a point of the stage; view = picture * zoom + (x, y). */
const view = { zoom: 1, x: 0, y: 0 };
function fit() {
  const ratio = answer.width / answer.height, most = Math.min(innerHeight * 0.74, 900);
  Object.assign($("stage").style, { aspectRatio: ratio, width: `min(100%, ${Math.round(most * ratio)}px)` });
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  draw();
}
function zoom(factor, x, y) {
  const before = view.zoom;
  view.zoom = Math.min(16, Math.max(1, before * factor));
  view.x = x - (x - view.x) * view.zoom / before;
  view.y = y - (y - view.y) * view.zoom / before;
  draw();
}
function draw() {
  const { clientWidth: width, clientHeight: height } = $("stage");
  view.x = Math.min(0, Math.max(width * (1 - view.zoom), view.x));
  view.y = Math.min(0, Math.max(height * (1 - view.zoom), view.y));
  const shown = answer && width ? width * view.zoom / answer.width : 1;
  for (const picture of [$("before"), $("after")]) {
    picture.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    picture.classList.toggle("blocks", shown >= 2 || (picture.id === "before" && chosen("left") === "input"));
  }
  $("stage").classList.toggle("zoomed", view.zoom > 1);
  $("zoomed").textContent = view.zoom === 1 ? "fit" : `${Math.round(100 * shown)}%`;
}
const middle = (factor) => () => zoom(factor, $("stage").clientWidth / 2, $("stage").clientHeight / 2);
$("in").addEventListener("click", middle(1.5));
$("out").addEventListener("click", middle(1 / 1.5));
$("stage").addEventListener("wheel", (event) => {
  if (!event.ctrlKey && view.zoom === 1 && event.deltaY > 0) return;  // the page scrolls
  event.preventDefault();
  const box = $("stage").getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.x, event.clientY - box.y);
}, { passive: false });
addEventListener("resize", () => { if (answer) draw(); });

/* One finger or the mouse: the divider; zoomed in and beside the handle, the picture. Two fingers: zoom. */
const fingers = new Map();
$("stage").addEventListener("pointerdown", (event) => {
  $("stage").setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY, divides: view.zoom === 1 || $("handle").contains(event.target) });
  if (fingers.size === 1) move(event);
  if ($("handle").contains(event.target)) $("handle").focus();
});
$("stage").addEventListener("pointermove", move);
for (const kind of ["pointerup", "pointercancel"]) $("stage").addEventListener(kind, (event) => fingers.delete(event.pointerId));
function move(event) {
  const finger = fingers.get(event.pointerId);
  if (!finger) return;
  const box = $("stage").getBoundingClientRect(), other = [...fingers.entries()].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const apart = (x, y) => Math.hypot(x - other.x, y - other.y);
    zoom(apart(event.clientX, event.clientY) / Math.max(1, apart(finger.x, finger.y)), (event.clientX + other.x) / 2 - box.x, (event.clientY + other.y) / 2 - box.y);
  } else if (finger.divides) {
    divide(100 * (event.clientX - box.x) / box.width);
  } else {
    view.x += event.clientX - finger.x;
    view.y += event.clientY - finger.y;
    draw();
  }
  Object.assign(finger, { x: event.clientX, y: event.clientY });
}
describe();
