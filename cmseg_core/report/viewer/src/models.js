// From base64 blocks of the page to meshes with the report's own colours.
import { Box3, Color, Mesh, MeshStandardMaterial, Vector3 } from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

const loader = new GLTFLoader();

/** Bytes of a `<script>` block that holds a gzipped GLB as base64. */
async function blockBytes(element) {
  const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Meshes of a GLB, flattened to the acquisition's frame; each keeps the name of its node. */
export async function loadMeshes(element) {
  const gltf = await loader.parseAsync(await blockBytes(element), "");
  gltf.scene.updateMatrixWorld(true);
  const meshes = [];
  gltf.scene.traverse((node) => {
    if (!node.isMesh) return;
    const geometry = node.geometry.applyMatrix4(node.matrixWorld);
    if (!geometry.attributes.normal) geometry.computeVertexNormals();
    // A node with several primitives is a group: its name is the class, its children's names are not.
    const named = node.parent && node.parent.isGroup && node.parent !== gltf.scene ? node.parent : node;
    const mesh = new Mesh(geometry, node.material);
    mesh.name = named.userData.name || named.name;
    meshes.push(mesh);
  });
  return meshes;
}

/** Which meshes are envelopes: those the file draws see-through, else the one with the largest box. */
export function envelopes(meshes) {
  const stated = meshes.filter((m) => m.material.transparent || m.material.opacity < 1);
  if (stated.length || meshes.length < 2) return stated;
  const size = (m) => {
    const s = new Box3().setFromObject(m).getSize(new Vector3());
    return s.x * s.y * s.z;
  };
  return [meshes.reduce((a, b) => (size(b) > size(a) ? b : a))];
}

export function solid(colour) {
  return new MeshStandardMaterial({ color: new Color(colour), roughness: 0.62, metalness: 0 });
}

/** Glass: clear where the surface faces the viewer, denser at the rim, so that what lies inside stays readable. */
export function glass(colour) {
  const material = new MeshStandardMaterial({
    color: new Color(colour), roughness: 0.5, metalness: 0, transparent: true, depthWrite: false,
  });
  material.onBeforeCompile = (shader) => {
    shader.fragmentShader = shader.fragmentShader.replace(
      "#include <opaque_fragment>",
      `float facing = abs(dot(normal, normalize(vViewPosition)));
       diffuseColor.a = min(1.0, diffuseColor.a * (0.35 + 2.2 * pow(1.0 - facing, 2.0)));
       #include <opaque_fragment>`,
    );
  };
  return material;
}
