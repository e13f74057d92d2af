// What happens on the page, and which file does it: api (the server), album (the browser's store), form, sheets
// (pictures, drawing and drawn), viewer (one picture, and what can be made of it), png (how a file was made).

import { models, ways } from "./api.js";
import * as album from "./album.js";
import { Form } from "./form.js";
import { paintNoise } from "./frames.js";
import { madeOf } from "./png.js";
import { Sheets } from "./sheets.js";
import { Viewer } from "./viewer.js";

const part = (id) => document.getElementById(id);
const form = new Form(part("ask"));
const sheets = new Sheets(part("sheets"), {
  open: (sheet, index) => viewer.open(sheet, index),
  use,
  say: (words, wrong) => form.say(words, wrong),
  changed: () => {
    part("start").hidden = sheets.all.length > 0;
    part("end").hidden = sheets.all.length === 0;
  },
});
const viewer = new Viewer(part("viewer"), {
  run: (asked) => sheets.run(asked),
  use,
  model: () => form.model,
  seed: () => form.fields.seed.value,
  sheets: () => sheets.all,
});

function use(asked) {
  form.fill(asked);
  form.say("Filled in as it was drawn. Change the words or a number, and draw.");
  form.fields.prompt.focus();
  form.fields.prompt.select();
}

function draw() {
  const asked = form.read();
  if (asked) sheets.run(asked);
}

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
part("again").addEventListener("click", () => {
  form.next();
  draw();
});
for (const button of part("start").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    form.fill({ prompt: button.textContent });
    draw();
  });
}
part("clear").addEventListener("click", async () => {
  if (!confirm("Remove all pictures of this page from the browser?")) return;
  sheets.clear();
  await album.forgetAll();
  form.fields.prompt.focus();
});
form.fields.seed.addEventListener("input", () => noise());

function noise() {
  paintNoise(part("start").querySelector("canvas"), form.fields.seed.value);
}

// A picture that is brought in: dropped, pasted or chosen.

async function bring(file) {
  await ready; // which models there are, and what they make of pictures
  const made = await madeOf(file);
  const first = made?.[0] ?? {};
  const name = file.name.replace(/\.\w+$/, "") || "a picture";
  try {
    (await createImageBitmap(file)).close();
  } catch {
    form.say(`${file.name || "What was dropped"} is no picture that this browser can read.`, true);
    return;
  }
  const asked = {
    verb: "brought", prompt: first.prompt || name, words: first.prompt, model: first.model, n: 1,
    seed: String(first.seed ?? 0), options: {}, files: {}, facts: `brought in · ${file.name}`,
  };
  const sheet = { time: Date.now(), asked, pictures: [{ blob: file, seed: asked.seed, k: first.k ?? 0 }] };
  sheets.show(sheet);
  await sheets.keep(sheet);
  if (made) filled(first);
  else viewer.open(sheet, 0);
}

/** Fills the form with how a picture of ours was made, and says what of that has no field here. */
function filled(made) {
  const missing = form.fill(made);
  const how = made.verb === "generate" ? "" : ` It came of the verb ${made.verb}, from pictures that are not in the file.`;
  const left = missing.length ? ` Not here: ${missing.join(", ")}.` : "";
  form.say(`unclip made it, and the form is filled in as it was drawn.${how}${left}`);
  form.fields.prompt.focus();
}

const carriesFiles = (event) => [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  part("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) part("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  part("drop").hidden = true;
  if (!carriesFiles(event)) return;
  event.preventDefault();
  bringAll(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => bringAll(event.clipboardData.files));
part("bring").addEventListener("change", async (event) => {
  await bringAll(event.target.files);
  event.target.value = "";
});

async function bringAll(files) {
  viewer.dialog.close();
  for (const file of files) await bring(file);
}

// The key, where the server wants one; those who ask at once share one question.

let asking = null;

ways.askForKey = () => {
  asking ??= new Promise((resolve) => {
    const dialog = part("key");
    dialog.addEventListener("close", () => {
      asking = null;
      const key = dialog.querySelector("input").value.trim();
      resolve(dialog.returnValue === "yes" && key ? key : null);
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
};

async function start() {
  noise();
  try {
    for (const sheet of await album.opened()) sheets.show(sheet);
  } catch (error) {
    form.say(`This browser keeps no pictures: they will be gone after a reload (${error.message})`, true);
  }
  sheets.on.changed();
  try {
    form.offer(await models());
  } catch (error) {
    form.say(error.message, true);
  }
}

const ready = start();
