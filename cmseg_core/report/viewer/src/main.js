// The 3D section of a report: all cells in place, or one cell with its organelles.
import { envelopes, glass, loadMeshes, solid } from "./models.js";
import { drawAxes, drawScaleBar } from "./rulers.js";
import { Stage } from "./stage.js";

const root = document.getElementById("viewer");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const settings = JSON.parse(document.getElementById("viewer-data").textContent);
const crowdBlock = document.getElementById("glb-crowd");
const cellBlock = (id) => document.getElementById(`glb-cell-${id}`);
const colours = new Map(settings.cells.map((c) => [String(c.id), c.colour]));
const classes = new Map(settings.classes.map((c) => [c.name, c.colour]));
const viewable = settings.cells.map((c) => String(c.id)).filter((id) => cellBlock(id));

let stage;
let shown = null; // "crowd": bodies in their colours; "inside": all cells with their organelles; or the id of a cell
let meshes = [];
let overview = crowdBlock ? "crowd" : "inside"; // where Escape leads back to
let request = 0;
const hidden = new Set();
const cache = new Map();

function message(text) {
  part("message").textContent = text;
  part("message").hidden = !text;
}

function meshesOf(key) {
  if (!cache.has(key)) {
    const loads = { crowd: loadCrowd, inside: loadInside };
    cache.set(key, (loads[key] || loadCell)(key));
  }
  return cache.get(key);
}

/** All bodies, each in its cell's colour. */
async function loadCrowd() {
  const list = await loadMeshes(crowdBlock);
  for (const mesh of list) {
    mesh.userData.cell = mesh.name.replace("cell_", "");
    mesh.material = solid(colours.get(mesh.userData.cell) || "#9aa4b0");
  }
  return list;
}

/** One cell: organelles solid in the colours of their classes, the envelope as glass. */
async function loadCell(id) {
  const list = await loadMeshes(cellBlock(id));
  const clear = new Set(envelopes(list));
  for (const mesh of list) {
    const colour = classes.get(mesh.name) || "#808080";
    mesh.userData.cell = id;
    mesh.material = clear.has(mesh) ? glass(colour) : solid(colour);
    mesh.renderOrder = clear.has(mesh) ? 1 : 0;
  }
  return list;
}

/** All cells with their organelles; geometry and materials are shared with the single cells. */
async function loadInside() {
  const all = [];
  for (const id of viewable) all.push(...(await meshesOf(id)));
  return all;
}

async function show(key) {
  if (!start() || key === shown) return;
  const turn = ++request;
  message("Loading\u2026");
  let list;
  try {
    list = await meshesOf(key);
  } catch (error) {
    message(`This model cannot be read (${error.message}).`);
    return;
  }
  if (turn !== request) return; // something else was asked for meanwhile
  message("");
  part("label").hidden = true;
  shown = key;
  if (!isCell(key)) overview = key;
  meshes = list;
  refreshLook();
  stage.show(list);
  describe();
}

const isCell = (key) => key !== "crowd" && key !== "inside";

function describe() {
  const single = isCell(shown);
  part("choice").value = shown;
  root.dataset.mode = single ? "cell" : shown;
  part("all").disabled = !single;
  const present = new Set(meshes.map((m) => m.name));
  for (const box of root.querySelectorAll("[data-class]")) {
    box.disabled = !present.has(box.dataset.class);
  }
  part("hint").textContent = single
    ? "Drag to turn; once clicked, scroll to zoom; right-drag to move. Esc: all cells."
    : "Click a cell to see its organelles. Drag to turn; once clicked, scroll to zoom.";
  for (const link of document.querySelectorAll("[data-view]")) {
    link.toggleAttribute("data-current", link.dataset.view === shown);
  }
}

/** Bring the shown meshes in line with the toggles and the opacity slider. */
function refreshLook() {
  if (shown !== "crowd") {
    for (const mesh of meshes) {
      mesh.visible = !hidden.has(mesh.name);
      if (mesh.material.transparent) mesh.material.opacity = Number(part("opacity").value);
    }
  }
  if (stage) stage.draw();
}

function step(by) {
  if (!viewable.length) return;
  const at = viewable.indexOf(shown);
  show(viewable[(at + by + viewable.length + (at < 0 && by < 0 ? 1 : 0)) % viewable.length]);
}

function back() {
  if (isCell(shown)) show(overview);
}

const KEYS = {
  ArrowLeft: () => stage.orbit(-0.12, 0), ArrowRight: () => stage.orbit(0.12, 0),
  ArrowUp: () => stage.orbit(0, -0.12), ArrowDown: () => stage.orbit(0, 0.12),
  "+": () => stage.orbit(0, 0, 0.88), "=": () => stage.orbit(0, 0, 0.88), "-": () => stage.orbit(0, 0, 1.14),
  0: () => stage.home(), Home: () => stage.home(), n: () => step(1), p: () => step(-1), Escape: back,
};

function onKey(event) {
  const action = !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key];
  if (!action || !stage) return;
  event.preventDefault();
  action();
}

function hoverAt(event) {
  const mesh = event.buttons ? undefined : stage.pick(event);
  const label = part("label");
  label.hidden = !mesh;
  stage.renderer.domElement.style.cursor = mesh && !isCell(shown) ? "pointer" : "grab";
  if (!mesh) return;
  const names = [isCell(shown) ? "" : `cell ${mesh.userData.cell}`, shown === "crowd" ? "" : mesh.name];
  label.textContent = names.filter(Boolean).join(": ");
  const frame = part("canvas").getBoundingClientRect();
  label.style.transform = `translate(${event.clientX - frame.left + 14}px, ${event.clientY - frame.top + 14}px)`;
}

function wirePicking(canvas) {
  let down = null;
  canvas.addEventListener("pointerdown", (e) => { down = [e.clientX, e.clientY]; });
  canvas.addEventListener("pointerup", (e) => {
    const still = down && Math.hypot(e.clientX - down[0], e.clientY - down[1]) < 4;
    const mesh = still && e.button === 0 && !isCell(shown) && stage.pick(e);
    if (mesh && viewable.includes(mesh.userData.cell)) show(mesh.userData.cell);
  });
  canvas.addEventListener("pointermove", hoverAt);
  canvas.addEventListener("pointerleave", () => { part("label").hidden = true; });
}

/** Make the stage on first use; false where the browser cannot draw. */
function start() {
  if (stage) return true;
  try {
    stage = new Stage(part("canvas"), (s) => {
      drawScaleBar(part("scale"), s);
      drawAxes(part("axes"), s);
    });
  } catch {
    root.dataset.mode = "off";
    message("This browser cannot draw 3D here: WebGL is switched off or missing. " +
      "The same models lie beside this report as cells/<id>/model.glb.");
    return false;
  }
  wirePicking(stage.renderer.domElement);
  return true;
}

function wire() {
  part("choice").addEventListener("change", (e) => show(e.target.value));
  part("all").addEventListener("click", back);
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("reset").addEventListener("click", () => stage && stage.home());
  part("canvas").addEventListener("keydown", onKey);
  part("opacity").addEventListener("input", refreshLook);
  for (const box of root.querySelectorAll("[data-class]")) {
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](box.dataset.class);
      refreshLook();
    });
  }
  for (const link of document.querySelectorAll("[data-view]")) {
    link.addEventListener("click", () => {
      show(link.dataset.view); // the browser itself scrolls to the anchor in the viewer
      part("canvas").focus({ preventScroll: true });
    });
  }
}

if (root) {
  wire();
  const asked = () => {
    const match = /^#view-(\d+)$/.exec(location.hash);
    return match && viewable.includes(match[1]) ? match[1] : null;
  };
  addEventListener("hashchange", () => asked() && show(asked()));
  if (asked()) show(asked());
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    if (shown === null && request === 0) show(overview);
  }, { rootMargin: "200px" }).observe(root);
}
