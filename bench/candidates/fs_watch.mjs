// Node's own fs.watch and fetch.
//     node fs_watch.mjs ROOT PORT
import { watch } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

const [root, port] = process.argv.slice(2);
const underway = new Map(); // name → size that was sent: one write raises several events

watch(root, async (_, name) => {
  if (!name?.endsWith(".txt")) return;
  try {
    const body = await readFile(join(root, name));
    if (!body.length || underway.get(name) === body.length) return;
    underway.set(name, body.length);
    const answer = await fetch(`http://127.0.0.1:${port}/`, { method: "POST", body });
    await answer.arrayBuffer();
  } catch (error) {
    console.error(error.message);
  }
});
