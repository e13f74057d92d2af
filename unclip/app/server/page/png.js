// How a PNG says that it was made: the text chunk "unclip", which holds JSON (docs/provenance.md). Nothing here trusts the file.

import { parsed } from "./api.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const FORMAT = 1; // of the records that are read
const LONGEST = 1 << 20; // bytes of text that are read

/** The records that unclip wrote into a picture's file, one for each of its pictures; null for any other file. */
export async function madeOf(file) {
  try {
    const said = await text(new Uint8Array(await file.arrayBuffer()), "unclip");
    return said === null ? null : recordsOf(parsed(said));
  } catch {
    return null; // a damaged file says nothing
  }
}

/** Those of a grid say once what they have in common. */
function recordsOf({ common = {}, cells, ...one }) {
  const all = Array.isArray(cells) ? cells.map((cell) => ({ ...common, ...cell })) : [one];
  return all.length && all.every((made) => made.format === FORMAT && typeof made.verb === "string") ? all : null;
}

/** The text of an iTXt or tEXt chunk by its key, or null. */
async function text(bytes, key) {
  if (SIGNATURE.some((byte, place) => bytes[place] !== byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const latin = new TextDecoder("latin1");
  for (let place = 8; place + 12 <= bytes.length;) {
    const length = view.getUint32(place);
    const kind = latin.decode(bytes.subarray(place + 4, place + 8));
    const data = bytes.subarray(place + 8, place + 8 + length);
    const end = data.indexOf(0);
    if (end > 0 && length <= LONGEST && latin.decode(data.subarray(0, end)) === key) {
      if (kind === "tEXt") return latin.decode(data.subarray(end + 1));
      if (kind === "iTXt") return international(data.subarray(end + 1));
    }
    place += 12 + length;
  }
  return null;
}

/** The text of an iTXt chunk after its key: two bytes on compression, a language, a translated key, the text. */
async function international(rest) {
  const language = rest.indexOf(0, 2);
  const body = rest.subarray(rest.indexOf(0, language + 1) + 1);
  if (!rest[0]) return new TextDecoder().decode(body);
  const reader = new Blob([body]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const decoder = new TextDecoder();
  let whole = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return whole;
    whole += decoder.decode(value, { stream: true });
    if (whole.length > LONGEST) throw new RangeError("more text than is read");
  }
}
