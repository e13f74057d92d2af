// The form at the top: what is asked for, read from it or filled into it.

const OPTIONS = ["guidance_scale", "steps", "sampler", "negative_prompt"]; // fields by the names of the server's
const NUMBERS = ["guidance_scale", "steps"]; // steps may be a name, too, such as ddim25

export class Form {
  constructor(element) {
    this.element = element;
    this.fields = element.elements;
    this.known = [];
    const prompt = this.fields.prompt;
    prompt.addEventListener("input", () => this.fit());
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      element.requestSubmit();
    });
    new ResizeObserver(() => this.fit()).observe(element);
    this.fields.model.addEventListener("change", () => this.suit());
  }

  /** As high as the prompt is long. */
  fit() {
    const { style } = this.fields.prompt;
    style.height = "auto";
    style.height = `${this.fields.prompt.scrollHeight}px`;
  }

  /** models: as api.models() tells them. */
  offer(models) {
    this.known = models;
    this.fields.model.replaceChildren(...models.map(({ id }) => new Option(id)));
    this.suit();
  }

  /** The chosen model, as the server tells of it. */
  get model() {
    return this.known.find(({ id }) => id === this.fields.model.value) ?? { id: undefined, size: 256, verbs: [] };
  }

  suit() {
    for (const name of NUMBERS) this.fields[name].placeholder = this.model[name] ?? "";
  }

  /** What is asked for; null where a field holds what cannot be, which is then said beside it. */
  read() {
    const prompt = this.fields.prompt.value.trim();
    if (!prompt) {
      this.say("Say what to draw, for example: a goldfish");
      this.fields.prompt.focus();
      return null;
    }
    for (const field of this.element.querySelectorAll("#more :invalid")) field.closest("details").open = true;
    if (!this.element.reportValidity()) return null;
    const options = {};
    for (const name of OPTIONS) {
      const value = this.fields[name].value.trim();
      if (value) options[name] = NUMBERS.includes(name) && !Number.isNaN(Number(value)) ? Number(value) : value;
    }
    return {
      verb: "generate", model: this.model.id, prompt, n: Number(this.fields.n.value),
      seed: BigInt(this.fields.seed.value).toString(), options, files: {},
    };
  }

  /** Fills in how something was drawn; returns the names of what has no field here. */
  fill({ prompt, n, seed, model, options = {} }) {
    if (prompt) this.fields.prompt.value = prompt;
    if (n) this.fields.n.value = Math.min(Math.max(n, 1), Number(this.fields.n.max));
    if (seed !== undefined) this.fields.seed.value = seed;
    const missing = [];
    if (this.known.some(({ id }) => id === model)) this.fields.model.value = model;
    else if (model) missing.push(`the model ${model}`);
    for (const name of OPTIONS) this.fields[name].value = options[name] ?? "";
    this.fields.sampler.value ||= "";
    document.getElementById("more").open = OPTIONS.some((name) => this.fields[name].value);
    this.suit();
    this.fit();
    return missing.concat(Object.keys(options).filter((name) => !OPTIONS.includes(name)));
  }

  /** Goes on to the next seed. */
  next() {
    const seed = this.fields.seed;
    if (/^-?\d+$/.test(seed.value)) seed.value = (BigInt(seed.value) + 1n).toString();
  }

  /** Says something to everybody, those included who do not see it. */
  say(words, wrong = false) {
    const said = document.getElementById("said");
    said.textContent = words;
    said.classList.toggle("wrong", wrong);
  }
}
