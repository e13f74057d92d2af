// One picture, large, and what can be made of it: variations, a part drawn anew, a path to another, the same seed.

import { Mask } from "./mask.js";
import { facts, title } from "./sheets.js";

const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const LARGEST = 4 << 20; // bytes of a file that is sent as it is
const MOST_OTHERS = 60; // pictures that a path may lead to

export class Viewer {
  /**
   * dialog: its element.
   * on:     {run(asked), use(asked), model(), seed(), sheets()}; sheets() are those that are shown, newest first.
   */
  constructor(dialog, on) {
    this.dialog = dialog;
    this.on = on;
    this.image = dialog.querySelector(".stage img");
    this.wrong = dialog.querySelector(".wrong");
    this.verbs = Object.fromEntries([...dialog.querySelectorAll("details")].map((one) => [one.dataset.verb, one]));
    this.mask = new Mask(dialog.querySelector("#mask"), this.field("inpaint", "brush"));
    const buttons = {
      close: () => dialog.close(),
      undo: () => this.mask.undo(),
      wipe: () => this.mask.clear(),
      seed: () => this.same(),
      previous: () => this.turn(-1),
      next: () => this.turn(1),
    };
    for (const [name, act] of Object.entries(buttons)) dialog.querySelector(`[data-do=${name}]`).onclick = act;
    for (const [verb, details] of Object.entries(this.verbs)) {
      details.ontoggle = () => this.painting();
      details.querySelector("form").onsubmit = (event) => this.submit(event, verb);
    }
    dialog.addEventListener("close", () => this.closed());
    dialog.addEventListener("keydown", (event) => this.key(event));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  }

  field(verb, name) {
    return this.verbs[verb].querySelector("form").elements[name];
  }

  /** Shows picture ``index`` of a sheet, and offers what the model can make of it. */
  async open(sheet, index, verb = "vary") {
    Object.assign(this, { sheet, index, picture: sheet.pictures[index] });
    this.release();
    this.image.src = URL.createObjectURL(this.picture.blob);
    this.image.alt = title(sheet.asked);
    this.dialog.querySelector("h2").textContent = title(sheet.asked);
    this.dialog.querySelector(".facts").textContent = facts(sheet, this.picture);
    const link = this.dialog.querySelector("[data-do=download]");
    link.href = this.image.src;
    link.download = this.fileName();
    this.dialog.querySelector("[data-do=seed]").hidden = sheet.asked.verb !== "generate";
    this.wrong.hidden = true;
    this.mask.clear();
    this.field("inpaint", "prompt").value = sheet.asked.verb === "brought" ? sheet.asked.words ?? "" : sheet.asked.prompt;
    this.offer(verb);
    this.others();
    if (!this.dialog.open) this.dialog.showModal();
    if (this.verbs[verb].open) this.verbs[verb].querySelector(".main").focus({ preventScroll: true });
    this.dialog.scrollTop = 0;
  }

  offer(verb) {
    const { verbs } = this.on.model();
    for (const [name, details] of Object.entries(this.verbs)) {
      details.hidden = !verbs.includes(name);
      details.open = name === verb && !details.hidden;
    }
    this.painting();
    if (!Object.keys(this.verbs).some((name) => verbs.includes(name))) {
      this.say(`The model ${this.on.model().id} makes nothing of pictures, only of words.`);
    }
  }

  painting() {
    this.mask.canvas.hidden = !this.verbs.inpaint.open;
    this.dialog.classList.toggle("painting", this.verbs.inpaint.open);
  }

  /** The pictures that a path may lead to. */
  others() {
    const place = this.dialog.querySelector(".others");
    const all = this.on.sheets().flatMap((sheet) => sheet.pictures.filter(Boolean).map((picture) => ({ sheet, picture })));
    this.ends = all.filter(({ picture }) => picture !== this.picture).slice(0, MOST_OTHERS);
    place.replaceChildren(...this.ends.map(({ sheet, picture }, number) => {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "other", value: number });
      const image = Object.assign(new Image(), { src: URL.createObjectURL(picture.blob), alt: title(sheet.asked) });
      label.append(radio, image);
      return label;
    }));
    place.closest("fieldset").hidden = !this.ends.length;
  }

  async submit(event, verb) {
    event.preventDefault();
    const fields = event.target.elements;
    const model = this.on.model();
    const name = title(this.sheet.asked);
    const asked = { verb, model: model.id, n: Number(fields.n.value), seed: this.on.seed(), options: {}, files: {} };
    try {
      Object.assign(asked, await this.asking[verb].call(this, fields, model.size, name));
    } catch (error) {
      this.say(error.message);
      return;
    }
    this.dialog.close();
    this.on.run(asked);
  }

  asking = {
    async vary(fields, size, name) {
      return {
        prompt: name, title: `Variations of ${name}`, options: { spread: Number(fields.spread.value) },
        files: { picture: await sendable(this.picture.blob, size) },
      };
    },
    async inpaint(fields, size) {
      if (this.mask.empty) throw new Error("Nothing is painted yet: paint on the picture what is to be drawn anew.");
      const prompt = fields.prompt.value.trim();
      if (!prompt) throw new Error("Say what the whole picture is to show.");
      return {
        prompt, title: `${prompt}, a part drawn anew`,
        files: { picture: await squared(this.picture.blob, size), mask: await this.mask.blob(size) },
      };
    },
    async interpolate(fields, size, name) {
      const [words, end] = [fields.words.value.trim(), this.ends[fields.other?.value]];
      if (!words && !end) throw new Error("Choose a second picture, or say in words where the path ends.");
      return {
        prompt: words, title: `From ${name} to ${words || title(end.sheet.asked)}`,
        files: {
          a: await sendable(this.picture.blob, size), b: words ? null : await sendable(end.picture.blob, size),
        },
      };
    },
  };

  /** Fills the form with how this one was drawn, for other words from the same noise. */
  same() {
    this.dialog.close();
    this.on.use({ ...this.sheet.asked, seed: this.picture.seed, n: Math.max(this.picture.k + 1, 1) });
  }

  turn(by) {
    const all = this.on.sheets().flatMap((sheet) => sheet.pictures.map((_, index) => [sheet, index]));
    const here = all.findIndex(([sheet, index]) => sheet === this.sheet && index === this.index);
    const there = all[here + by];
    if (there) this.open(...there, Object.keys(this.verbs).find((verb) => this.verbs[verb].open) ?? "vary");
  }

  key(event) {
    if (event.target.matches("input, select, textarea, canvas")) return;
    if (event.key === "ArrowLeft") this.turn(-1);
    if (event.key === "ArrowRight") this.turn(1);
  }

  say(words) {
    this.wrong.textContent = words;
    this.wrong.hidden = false;
  }

  fileName() {
    const words = title(this.sheet.asked).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
    return `${words.slice(0, 80) || "picture"}-${this.picture.seed}-${this.picture.k}.png`;
  }

  release() {
    for (const image of this.dialog.querySelectorAll("img")) {
      if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    }
  }

  closed() {
    this.mask.canvas.hidden = true;
    this.release();
  }
}

/** The file itself, or as a PNG if servers do not read its kind. */
async function sendable(blob, size) {
  return SENT_AS_THEY_ARE.includes(blob.type) && blob.size <= LARGEST ? blob : squared(blob, size);
}

/** The middle square as a PNG of size x size pixels, on white; a file that is one is left as it is. */
async function squared(blob, size) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error("This browser cannot read the file as a picture.");
  }
  const { width, height } = bitmap;
  if (width === size && height === size && blob.type === "image/png") return blob;
  const side = Math.min(width, height);
  const canvas = new OffscreenCanvas(size, size);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, size, size);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - side) / 2, (height - side) / 2, side, side, 0, 0, size, size);
  return canvas.convertToBlob({ type: "image/png" });
}
