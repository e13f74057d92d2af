// The one file that talks to the server: what is asked for becomes a call, and its answer a row of events.

const BASE = new URL("../v1/", import.meta.url);
const KEY = "unclip-key"; // in the tab's own store, which ends with it
const PARTIALS = 12; // pictures on the way that are asked for, at most
const LONGEST_WAIT = 60; // seconds before a full queue is asked again

/** What the server says in place of an answer, in its own words. */
export class Refused extends Error {
  constructor(message, status = 0, seconds = 0) {
    super(message);
    this.status = status;
    this.seconds = seconds; // to wait before asking again
  }
}

/** Asked when the server wants a key; answers with one, or with null. Set by the page. */
export const ways = { askForKey: async () => null };

/** The models that can be asked, each as {id, size, verbs, steps, guidance_scale}. */
export async function models() {
  const list = await (await called("models")).json();
  return Promise.all(list.data.map(async ({ id }) => {
    const one = await (await called(`models/${encodeURIComponent(id)}`)).json();
    return { id, ...one.unclip };
  }));
}

/**
 * The events of a drawing: {type: "queued", place}, {type: "busy", seconds}, {type: "partial", index, step, of,
 * blob} and {type: "picture", index, seed, k, blob}, until all n pictures are there.
 *
 * asked:  {verb, model, prompt, n, seed, options, files}; verb is the name of a Pipeline's method, seed a text
 *         (it may have more digits than a number here), files are blobs by the names that the verb takes.
 * signal: of an AbortController, to stop it.
 */
export async function* drawing(asked, signal) {
  for (;;) {
    try {
      yield* answers(await called(...VERBS[asked.verb](asked), signal), asked);
      return;
    } catch (error) {
      if (error.status !== 429 || !error.seconds) throw error;
      yield { type: "busy", seconds: error.seconds };
      await pause(Math.min(error.seconds, LONGEST_WAIT), signal);
    }
  }
}

const VERBS = {
  generate: (asked) => ["images/generations", JSON.stringify(streamed(asked, { prompt: asked.prompt }))],
  inpaint: (asked) => ["images/edits", fields(streamed(asked, { prompt: asked.prompt }), {
    image: asked.files.picture, mask: asked.files.mask,
  })],
  vary: (asked) => ["images/variations", fields(streamed(asked), { image: asked.files.picture })],
  interpolate: (asked) => ["images/interpolations", fields(
    { ...common(asked), prompt: asked.files.b ? undefined : asked.prompt },
    { "image[]": [asked.files.a, asked.files.b].filter(Boolean) },
  )],
};

function common({ model, n, seed, options }) {
  const number = Number(seed);
  return {
    model, n, seed: Number.isSafeInteger(number) ? number : seed,
    ...options, response_format: "b64_json", output_format: "png",
  };
}

function streamed(asked, more = {}) {
  return { ...common(asked), ...more, stream: true, partial_images: PARTIALS };
}

/** A form of texts and files; a list is sent as one field again and again. */
function fields(texts, files) {
  const form = new FormData();
  for (const [name, value] of Object.entries(texts)) {
    if (value !== undefined) form.append(name, String(value));
  }
  for (const [name, given] of Object.entries(files)) {
    for (const file of [given].flat()) form.append(name, file, `picture.${file.type.split("/")[1] || "png"}`);
  }
  return form;
}

/** The response to a call (GET without a body); ``Refused`` for anything but success. */
async function called(path, body, signal) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), request(body, signal));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is unclip serve still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    const key = await ways.askForKey();
    if (key) {
      sessionStorage.setItem(KEY, key);
      return called(path, body, signal);
    }
  }
  throw new Refused(await words(response), response.status, Number(response.headers.get("Retry-After")) || 0);
}

function request(body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (typeof body === "string") headers["Content-Type"] = "application/json";
  return { method: body === undefined ? "GET" : "POST", headers, body, signal, cache: "no-store" };
}

async function words(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}, and did not say why.`;
  }
}

async function* answers(response, asked) {
  if (!response.headers.get("Content-Type").startsWith("text/event-stream")) {
    const { data } = await response.json();
    for (const [index, one] of data.entries()) yield pictureOf(one, index, asked);
    return;
  }
  let left = asked.n;
  for await (const event of events(response.body)) {
    if (event.error) throw new Refused(event.error.message);
    if (event.type === "unclip.queued") {
      yield { type: "queued", place: event.place };
    } else if (event.type.endsWith(".partial_image")) {
      const step = event.partial_image_index + 1;
      yield { type: "partial", index: event.index ?? 0, step, of: PARTIALS, blob: blobOf(event.b64_json) };
    } else if (event.type.endsWith(".completed")) {
      left -= 1;
      yield pictureOf(event, event.index ?? 0, asked);
    }
  }
  if (left > 0) throw new Refused("The server ended before the last picture was drawn.");
}

function pictureOf(one, index, asked) {
  const { seed = asked.seed, k = index } = one;
  return { type: "picture", index, seed: String(seed), k, blob: blobOf(one.b64_json) };
}

function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (mark) => mark.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

/** The events of a stream of server-sent ones, as they come. */
async function* events(body) {
  let text = "";
  for await (const piece of pieces(body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (text + piece).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length && data[0].trim() !== "[DONE]") yield parsed(data.join("\n"));
    }
  }
}

/** A stream's pieces; not every browser can walk over a stream by itself. */
async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The connection broke off. Is unclip serve still running?");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** JSON, in which a seed of more digits than a number here holds is a text. */
export function parsed(text) {
  return JSON.parse(text, (key, value, context) =>
    key === "seed" && typeof value === "number" && !Number.isSafeInteger(value) ? context?.source ?? value : value);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}
