// One picture on the page: noise at first, then every picture on the way, then the one that was drawn.

/** Noise of a seed on a canvas, the same for the same seed. */
export function paintNoise(canvas, seed, k = 0) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const draw = normal(hash(`${seed}/${k}`));
  pixels.data.forEach((_, place, data) => {
    data[place] = place % 4 === 3 ? 255 : 128 + 52 * draw();
  });
  context.putImageData(pixels, 0, 0);
}

function hash(text) {
  let state = 2166136261; // FNV-1a
  for (const mark of text) state = Math.imul(state ^ mark.codePointAt(0), 16777619);
  return state >>> 0;
}

/** Numbers of the normal distribution: mulberry32, and Box and Muller's transform. */
function normal(state) {
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

export class Frame {
  /** alt: what it is to show, in words. */
  constructor(seed, k, alt) {
    this.element = document.getElementById("frame-of").content.firstElementChild.cloneNode(true);
    this.button = this.element.firstElementChild;
    this.alt = alt;
    this.turn = 0;
    this.button.setAttribute("aria-label", `${alt}, being drawn`);
    paintNoise(this.button.firstElementChild, seed, k);
  }

  /** Fades to a picture on the way. */
  async show(blob, last = false) {
    const turn = ++this.turn;
    const image = new Image();
    image.alt = this.alt;
    image.src = URL.createObjectURL(blob);
    try {
      await image.decode();
    } catch {
      image.alt = "a picture that this browser cannot show";
    }
    if (turn !== this.turn) return URL.revokeObjectURL(image.src); // a later one was there first
    const before = [...this.button.children];
    this.button.append(image);
    this.button.classList.toggle("drawn", last);
    const settled = () => before.forEach((one) => {
      if (one.src) URL.revokeObjectURL(one.src);
      one.remove();
    });
    await Promise.allSettled(image.getAnimations().map((one) => one.finished));
    settled();
  }

  /** Ends at the picture that was drawn, which opens on a click. */
  finish(picture, open) {
    this.button.setAttribute("aria-label", `${this.alt}, seed ${picture.seed}, number ${picture.k}: open`);
    this.button.disabled = false;
    this.button.onclick = open;
    return this.show(picture.blob, true);
  }

  remove() {
    for (const image of this.button.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    this.element.remove();
  }
}
