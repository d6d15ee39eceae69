// Scale bar and axes, drawn as SVG and text over the canvas.
import { Vector3 } from "three";

const AXES = [["x", new Vector3(1, 0, 0)], ["y", new Vector3(0, 1, 0)], ["z", new Vector3(0, 0, 1)]];

/** Largest 1, 2 or 5 times a power of ten that is not above the value. */
export function roundLength(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [5, 2, 1].find((step) => step * power <= value) * power;
}

export function lengthText(micrometres) {
  return micrometres < 1 ? `${Math.round(micrometres * 1000)} nm` : `${micrometres} \u00b5m`;
}

export function drawScaleBar(element, stage) {
  const perPixel = stage.unitsPerPixel();
  const length = roundLength(perPixel * 150);
  element.querySelector("i").style.width = `${length / perPixel}px`;
  element.querySelector("span").textContent = lengthText(length);
}

export function drawAxes(svg, stage) {
  const inverse = stage.camera.quaternion.clone().invert();
  const drawn = AXES.map(([name, axis]) => [name, axis.clone().applyQuaternion(inverse)]);
  drawn.sort((a, b) => a[1].z - b[1].z); // the nearest axis is drawn last
  svg.innerHTML = drawn.map(([name, v]) => {
    const [x, y] = [v.x * 24, -v.y * 24];
    const faint = v.z < -0.2 ? 0.55 : 1;
    return `<g class="axis-${name}" opacity="${faint}"><line x2="${x.toFixed(1)}" y2="${y.toFixed(1)}"/>` +
      `<text x="${(x * 1.38).toFixed(1)}" y="${(y * 1.38 + 3.5).toFixed(1)}">${name}</text></g>`;
  }).join("");
}
