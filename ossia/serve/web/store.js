// Conversations in IndexedDB, settings of the page in localStorage: nothing leaves the browser.

import { merge } from "./conversation.js";

const NAME = "ossia";
let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("titles", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

function done(transaction, result = () => undefined) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(result());
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

// {id, title, updated} of every conversation, the latest first.
export async function list() {
  const transaction = (await database()).transaction("titles");
  const request = transaction.objectStore("titles").getAll();
  const found = await done(transaction, () => request.result);
  return found.sort((one, other) => other.updated - one.updated);
}

export async function load(id) {
  const transaction = (await database()).transaction("conversations");
  const request = transaction.objectStore("conversations").get(id);
  return done(transaction, () => request.result);
}

// Save a conversation, and merge into it what another tab has saved of it.
export async function save(conversation) {
  const transaction = (await database()).transaction(["conversations", "titles"], "readwrite");
  const kept = transaction.objectStore("conversations");
  const request = kept.get(conversation.id);
  request.onsuccess = () => {
    if (request.result) merge(conversation, request.result);
    const { id, title } = conversation;
    // This tab does not show yet what another has added: it stays older than the stored copy.
    const updated = Math.max(conversation.updated, request.result?.updated ?? 0);
    kept.put({ ...conversation, updated });
    transaction.objectStore("titles").put({ id, title, updated });
  };
  return done(transaction);
}

export async function remove(id) {
  const transaction = (await database()).transaction(["conversations", "titles"], "readwrite");
  transaction.objectStore("conversations").delete(id);
  transaction.objectStore("titles").delete(id);
  return done(transaction);
}

// A setting of the page. A key of the API is kept for the tab alone, unless `lasting`.
export function setting(name) {
  return sessionStorage.getItem(`ossia.${name}`) ?? localStorage.getItem(`ossia.${name}`);
}

export function keep(name, value, lasting = true) {
  sessionStorage.removeItem(`ossia.${name}`);
  localStorage.removeItem(`ossia.${name}`);
  if (value) (lasting ? localStorage : sessionStorage).setItem(`ossia.${name}`, value);
}
