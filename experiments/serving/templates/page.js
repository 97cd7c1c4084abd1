"use strict";
// While a page is looked at whose rows may change, <main> is replaced by what the server says now. What a person has opened,
// scrolled or selected stays; a server that does not answer is named with the time of what is shown.
const EVERY_MS = 3000;
let shown = new Date();

async function refresh() {
  const old = document.querySelector("main[data-live]");
  const selecting = String(getSelection()) || document.activeElement?.tagName === "INPUT";
  if (!old || document.hidden || selecting) return;
  const lost = document.getElementById("lost");
  try {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    for (const open of old.querySelectorAll("details[open][id]")) fresh.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
    const scrolled = [...old.querySelectorAll(".talk, .scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
    if (fresh.innerHTML !== old.innerHTML) {
      old.replaceWith(fresh);
      [...fresh.querySelectorAll(".talk, .scroll")].forEach((box, place) => box.scrollTo(...(scrolled[place] ?? [0, 0])));
    }
    document.title = page.title;
    shown = new Date();
    lost.hidden = true;
  } catch {
    lost.textContent = `The server does not answer; this is from ${shown.toLocaleTimeString()}.`;
    lost.hidden = false;
  }
}

setInterval(refresh, EVERY_MS);
