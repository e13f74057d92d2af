// The pictures, a sheet for every drawing: while it runs, and as the album keeps it.
//
// A sheet is {id, time, asked, seconds, pictures: [{blob, seed, k}]}; asked is what api.drawing takes, and a title.

import { drawing } from "./api.js";
import { forget, keep } from "./album.js";
import { Frame } from "./frames.js";

const NAMES = { guidance_scale: "guidance", negative_prompt: "away from", prior_guidance_scale: "prior guidance" };

/** What was asked for, in a few words. */
export function title(asked) {
  return asked.title ?? asked.prompt;
}

/** How it was drawn, on one line. */
export function facts({ asked, seconds }, picture = null) {
  if (asked.verb === "brought") return asked.facts ?? "brought in";
  const options = Object.entries(asked.options).map(([name, value]) => `${NAMES[name] ?? name} ${value}`);
  const which = picture && picture.k ? `, picture ${picture.k + 1}` : "";
  const took = seconds && !picture ? [`${seconds.toFixed(1)} s`] : [];
  return [`seed ${picture?.seed ?? asked.seed}${which}`, ...options, asked.model, ...took].join(" · ");
}

export class Sheets {
  /**
   * element: where they are shown, newest first.
   * on:      {open(sheet, index), use(asked), say(words, wrong), changed()}.
   */
  constructor(element, on) {
    this.element = element;
    this.on = on;
    this.all = []; // newest first
  }

  /** Shows a sheet that is whole. */
  show(sheet) {
    const view = this.#view(sheet);
    sheet.pictures.forEach((picture, index) => {
      const frame = this.#frame(sheet, view, index);
      frame.finish(picture, () => this.on.open(sheet, index));
    });
    this.#settle(view, sheet);
  }

  /** Draws what is asked for, and keeps it. */
  async run(asked) {
    const sheet = { time: Date.now(), asked, pictures: [] };
    const view = this.#view(sheet);
    const stopping = new AbortController();
    view.stop = () => stopping.abort();
    const frames = Array.from({ length: asked.n }, (_, index) => this.#frame(sheet, view, index));
    const done = new Array(asked.n).fill(0);
    view.facts.textContent = "Waiting for the server";
    this.on.say(`Drawing ${title(asked)}`);
    view.element.scrollIntoView({ block: "nearest" });
    const start = performance.now();
    try {
      for await (const event of drawing(asked, stopping.signal)) {
        view.facts.textContent = this.#take(event, sheet, frames, done);
        view.progress.value = done.reduce((sum, share) => sum + share, 0) / asked.n;
      }
      this.on.say(`Drawn: ${title(asked)}`);
    } catch (error) {
      this.#failed(error, view, sheet);
    }
    sheet.seconds = (performance.now() - start) / 1000;
    sheet.pictures = sheet.pictures.filter(Boolean);
    for (const frame of frames) if (!frame.button.onclick) frame.remove();
    this.#settle(view, sheet);
    if (sheet.pictures.length) await this.keep(sheet);
    else if (view.wrong.hidden) this.#remove(view, sheet);
  }

  /** Keeps a sheet where that can be done, and says so where not. */
  async keep(sheet) {
    try {
      await keep(sheet);
    } catch (error) {
      this.on.say(`These pictures will be gone after a reload: the browser does not keep them (${error.message})`, true);
    }
  }

  clear() {
    for (const sheet of [...this.all]) this.#remove(sheet.view, sheet);
  }

  /** One event of a drawing; returns what is to be said of it. */
  #take(event, sheet, frames, done) {
    if (event.type === "queued") return event.place > 0 ? `Number ${event.place} in line` : "Next in line";
    if (event.type === "busy") return `The line is full; asking again in ${event.seconds} s`;
    if (event.type === "partial") {
      done[event.index] = event.step / (event.of + 1);
      frames[event.index].show(event.blob);
    } else {
      const { index, seed, k, blob } = event;
      done[index] = 1;
      sheet.pictures[index] = { blob, seed, k };
      frames[index].finish(sheet.pictures[index], () => this.on.open(sheet, sheet.pictures.indexOf(
        sheet.pictures.find((one) => one?.blob === blob))));
    }
    const whole = done.filter((share) => share === 1).length;
    return frames.length > 1 ? `Drawing, ${whole} of ${frames.length} are whole` : "Drawing";
  }

  #failed(error, view, sheet) {
    if (error.name === "AbortError") {
      this.on.say(`Stopped: ${title(sheet.asked)}`);
      return;
    }
    view.wrong.textContent = error.message;
    view.wrong.hidden = false;
    this.on.say("");
  }

  #view(sheet) {
    const element = document.getElementById("sheet-of").content.firstElementChild.cloneNode(true);
    const view = {
      element, facts: element.querySelector(".facts"), progress: element.querySelector("progress"),
      wrong: element.querySelector(".wrong"), frames: element.querySelector(".frames"), stop: () => {},
    };
    element.classList.add(sheet.asked.verb);
    element.querySelector("h2").textContent = title(sheet.asked);
    const buttons = {
      stop: () => view.stop(),
      again: () => this.run({ ...sheet.asked, seed: (BigInt(sheet.asked.seed) + 1n).toString() }),
      use: () => this.on.use(sheet.asked),
      remove: () => this.#remove(view, sheet),
    };
    for (const button of element.querySelectorAll("[data-do]")) {
      button.onclick = buttons[button.dataset.do];
      button.setAttribute("aria-label", `${button.textContent}: ${title(sheet.asked)}`);
    }
    element.querySelector("[data-do=again]").hidden = sheet.asked.verb === "brought";
    element.querySelector("[data-do=use]").hidden = sheet.asked.verb !== "generate";
    element.classList.add("running");
    this.element.prepend(element);
    Object.defineProperty(sheet, "view", { value: view, enumerable: false }); // not kept in the album
    this.all.unshift(sheet);
    this.on.changed();
    return view;
  }

  #frame(sheet, view, index) {
    const frame = new Frame(sheet.asked.seed, index, title(sheet.asked));
    view.frames.append(frame.element);
    view.frames.dataset.count = view.frames.children.length;
    return frame;
  }

  #settle(view, sheet) {
    view.element.classList.remove("running");
    view.facts.textContent = facts(sheet);
    view.frames.dataset.count = view.frames.children.length;
  }

  async #remove(view, sheet) {
    view.stop();
    view.element.remove();
    this.all = this.all.filter((one) => one !== sheet);
    this.on.changed();
    await forget(sheet);
  }
}
