// Canvas, camera, light and orbit; draws only when something changed.
import {
  Box3, DirectionalLight, Group, HemisphereLight, PerspectiveCamera, Raycaster, Scene, Sphere, Spherical, Quaternion,
  Vector2, Vector3, WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

const UP = new Vector3(0, -1, 0); // image rows run downwards, so y points down and the models match the sections
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

export class Stage {
  constructor(holder, onDraw) {
    this.holder = holder;
    this.onDraw = onDraw;
    this.renderer = new WebGLRenderer({ antialias: true, alpha: true, preserveDrawingBuffer: true });
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    holder.prepend(this.renderer.domElement);
    this.scene = new Scene();
    this.content = new Group();
    this.camera = new PerspectiveCamera(28, 1, 0.01, 1000);
    this.camera.up.copy(UP);
    const key = new DirectionalLight(0xffffff, 2.4);
    key.position.set(-0.6, 1, 0.9);
    this.camera.add(key);
    this.scene.add(this.content, this.camera, new HemisphereLight(0xffffff, 0xa9b2be, 1.5));
    this.controls = new OrbitControls(this.camera, this.renderer.domElement);
    this.controls.enableDamping = !calm;
    this.controls.dampingFactor = 0.12;
    this.controls.addEventListener("change", () => this.draw());
    // The wheel belongs to the page until the view is in use, so that scrolling past does not get caught here.
    this.controls.enableZoom = holder.contains(document.activeElement);
    holder.addEventListener("focusin", () => { this.controls.enableZoom = true; });
    holder.addEventListener("focusout", () => { this.controls.enableZoom = false; });
    this.raycaster = new Raycaster();
    new ResizeObserver(() => this.resize()).observe(holder);
    this.resize();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.holder;
    if (!width || !height) return;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.controls.update(); // with damping this fires "change" until the motion has died away
      this.renderer.render(this.scene, this.camera);
      this.onDraw(this);
    });
  }

  /** Replace what is shown and, unless told otherwise, look at all of it. */
  show(meshes) {
    this.content.clear();
    if (meshes.length) this.content.add(...meshes);
    this.home();
  }

  home() {
    const box = new Box3().setFromObject(this.content);
    if (box.isEmpty()) return;
    const sphere = box.getBoundingSphere(new Sphere());
    const direction = new Vector3(-0.35, -0.42, -1).normalize();
    const distance = 1.1 * this.fittingDistance(sphere.center, direction);
    this.controls.target.copy(sphere.center);
    this.camera.position.copy(sphere.center).addScaledVector(direction, distance);
    this.camera.lookAt(sphere.center);
    this.camera.near = distance / 100;
    this.camera.far = distance * 20;
    this.controls.minDistance = sphere.radius * 0.15;
    this.controls.maxDistance = distance * 6;
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  /** Least distance from which the boxes of all meshes are in sight. */
  fittingDistance(centre, direction) {
    this.camera.position.copy(centre).add(direction);
    this.camera.lookAt(centre);
    const inverse = this.camera.quaternion.clone().invert();
    const slope = Math.tan((this.camera.fov * Math.PI) / 360);
    let distance = 0;
    for (const mesh of this.content.children) {
      const box = new Box3().setFromObject(mesh);
      for (let corner = 0; corner < 8; corner++) {
        const v = new Vector3(...["x", "y", "z"].map((axis, bit) => box[corner & (1 << bit) ? "max" : "min"][axis]));
        v.sub(centre).applyQuaternion(inverse);
        distance = Math.max(distance, v.z + Math.max(Math.abs(v.x) / this.camera.aspect, Math.abs(v.y)) / slope);
      }
    }
    return distance;
  }

  /** Turn about the target by two angles in radians; a factor other than 1 moves nearer or away. */
  orbit(theta, phi, factor = 1) {
    const turn = new Quaternion().setFromUnitVectors(UP, new Vector3(0, 1, 0));
    const offset = this.camera.position.clone().sub(this.controls.target).applyQuaternion(turn);
    const spherical = new Spherical().setFromVector3(offset);
    spherical.theta += theta;
    spherical.phi += phi;
    spherical.radius = Math.min(
      this.controls.maxDistance, Math.max(this.controls.minDistance, spherical.radius * factor));
    spherical.makeSafe();
    offset.setFromSpherical(spherical).applyQuaternion(turn.invert());
    this.camera.position.copy(this.controls.target).add(offset);
    this.camera.lookAt(this.controls.target);
    this.draw();
  }

  /** The nearest visible mesh under a pointer event, or undefined. */
  pick(event) {
    const frame = this.renderer.domElement.getBoundingClientRect();
    const at = new Vector2(
      ((event.clientX - frame.left) / frame.width) * 2 - 1, 1 - ((event.clientY - frame.top) / frame.height) * 2);
    this.raycaster.setFromCamera(at, this.camera);
    const hit = this.raycaster.intersectObjects(this.content.children.filter((m) => m.visible), false)[0];
    return hit && hit.object;
  }

  /** Micrometres that one CSS pixel covers in the plane of the target. */
  unitsPerPixel() {
    const distance = this.camera.position.distanceTo(this.controls.target);
    return (2 * distance * Math.tan((this.camera.fov * Math.PI) / 360)) / this.holder.clientHeight;
  }
}
