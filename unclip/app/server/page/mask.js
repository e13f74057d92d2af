// Painting what of a picture is to be drawn anew: by pointer, finger or keyboard.

import { paintNoise } from "./frames.js";

const SHOWN = 512; // pixels a side of what is seen while painting

export class Mask {
  /** canvas: lies on the picture; brush: the range field, of the brush's width as a share of the picture's. */
  constructor(canvas, brush) {
    this.canvas = canvas;
    this.brush = brush;
    canvas.width = canvas.height = SHOWN;
    this.layer = new OffscreenCanvas(SHOWN, SHOWN);
    const noise = Object.assign(document.createElement("canvas"), { width: 128, height: 128 });
    paintNoise(noise, "mask");
    this.noise = this.layer.getContext("2d").createPattern(noise, "repeat");
    this.noise.setTransform(new DOMMatrix().scale(4));
    this.clear();
    const points = { pointerdown: "down", pointermove: "move", pointerup: "up", pointercancel: "up", pointerleave: "leave" };
    for (const [event, name] of Object.entries(points)) canvas.addEventListener(event, (e) => this[name](e));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("keyup", (event) => event.key === " " && (this.stroke = null));
    canvas.addEventListener("blur", () => this.leave());
    brush.addEventListener("input", () => this.draw());
  }

  get empty() {
    return this.strokes.length === 0;
  }

  clear() {
    this.strokes = []; // each {width, points: [[x, y], ...]}, in shares of the picture
    this.stroke = null;
    this.at = null; // where the brush is
    this.draw();
  }

  undo() {
    this.strokes.pop();
    this.draw();
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(this.place(event));
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
  }

  move(event) {
    for (const one of event.getCoalescedEvents?.() ?? [event]) this.go(this.place(one));
    this.draw();
  }

  up() {
    this.stroke = null;
  }

  leave() {
    this.at = this.stroke = null;
    this.draw();
  }

  key(event) {
    const step = Number(this.brush.value) / 4;
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const [x, y] = this.at ?? [0.5, 0.5];
    if (ways[event.key]) {
      const [right, down] = ways[event.key];
      this.go([Math.min(Math.max(x + right, 0), 1), Math.min(Math.max(y + down, 0), 1)]);
    } else if (event.key === " ") {
      if (!this.stroke) this.begin([x, y]);
    } else if (event.key === "Backspace") {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }

  place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  begin(point) {
    this.at = point;
    this.stroke = { width: Number(this.brush.value), points: [point] };
    this.strokes.push(this.stroke);
    this.draw();
  }

  go(point) {
    this.at = point;
    this.stroke?.points.push(point);
  }

  /** What is painted is seen as noise, for that is what it is drawn from. */
  draw() {
    const context = this.canvas.getContext("2d");
    const layer = this.layer.getContext("2d");
    layer.clearRect(0, 0, SHOWN, SHOWN);
    paint(layer, this.strokes, SHOWN, this.noise);
    context.clearRect(0, 0, SHOWN, SHOWN);
    context.globalAlpha = 0.88;
    context.drawImage(this.layer, 0, 0);
    context.globalAlpha = 1;
    if (!this.at) return;
    for (const [width, colour] of [[4, "white"], [1.5, "black"]]) { // a ring that is seen on any ground
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(this.at[0] * SHOWN, this.at[1] * SHOWN, (Number(this.brush.value) * SHOWN) / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** A PNG of size x size pixels as the Images API wants it: transparent is drawn anew, black stays. */
  async blob(size) {
    const canvas = new OffscreenCanvas(size, size);
    const context = canvas.getContext("2d");
    paint(context, this.strokes, size, "white");
    const pixels = context.getImageData(0, 0, size, size);
    for (let place = 0; place < pixels.data.length; place += 4) {
      const painted = pixels.data[place + 3] >= 128;
      pixels.data.set([0, 0, 0, painted ? 0 : 255], place);
    }
    context.putImageData(pixels, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }
}

function paint(context, strokes, size, colour) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const { width, points } of strokes) {
    context.lineWidth = width * size;
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * size, y * size));
    if (points.length === 1) context.lineTo(points[0][0] * size + 0.01, points[0][1] * size);
    context.stroke();
  }
}
