// chokidar and fetch.
//     node chokidar.mjs ROOT PORT
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";

const installed = createRequire(new URL("../built/", import.meta.url));
const { watch } = await import(installed.resolve("chokidar"));
const [root, port] = process.argv.slice(2);

async function post(path) {
  if (!path.endsWith(".txt")) return;
  try {
    const body = await readFile(path);
    if (!body.length) return;
    const answer = await fetch(`http://127.0.0.1:${port}/`, { method: "POST", body });
    await answer.arrayBuffer();
  } catch (error) {
    console.error(error.message);
  }
}

watch(root, { ignoreInitial: true, depth: 0 }).on("add", post).on("change", post);
