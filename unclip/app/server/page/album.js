// The pictures of the visit, in the browser's own store (IndexedDB), so that they are there after a reload.

const NAME = "unclip", STORE = "sheets";
let database = null; // null where the browser keeps nothing: a private window, or a full disk

/** Opens the store; returns all sheets in it, oldest first. Throws where the browser refuses. */
export async function opened() {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  database = await answer(opening);
  return answer(store("readonly").getAll());
}

/** Keeps a sheet, whose id is set by this; false where nothing can be kept. */
export async function keep(sheet) {
  if (!database) return false;
  sheet.id = await answer(store("readwrite").put(sheet));
  return true;
}

export async function forget(sheet) {
  if (database && sheet.id !== undefined) await answer(store("readwrite").delete(sheet.id));
}

export async function forgetAll() {
  if (database) await answer(store("readwrite").clear());
}

function store(mode) {
  return database.transaction(STORE, mode).objectStore(STORE);
}

function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the store"));
  });
}
