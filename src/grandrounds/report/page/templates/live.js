// The live report: it shows what the server pushes, and keeps the reader's place.
const live = document.getElementById("live");
const source = new EventSource("/events");
let shown = live.dataset.number;
let lost = false;

const top_of = element => element.getBoundingClientRect().top;
const words = element =>
  element.ariaLabel ?? (element.querySelector("summary") ?? element).textContent;

// An element is known again by its words without their numbers, which change.
const named = () => {
  const found = new Map();
  for (const element of document.querySelectorAll("a[href], details, summary, [tabindex]")) {
    let name = `${element.tagName} ${element.id} ${words(element).replace(/\d+/g, "0")}`;
    while (found.has(name)) name += "'";
    found.set(name, element);
  }
  return found;
};

const remember = () => {
  const passed = [...document.querySelectorAll("main [id]")].filter(found => top_of(found) <= 8);
  const last = passed.at(-1);
  return {
    scroll: window.scrollY,
    anchor: last && { id: last.id, top: top_of(last) },
    parts: [...named()].map(([name, element]) => ({
      name,
      open: element.open,
      left: element.scrollLeft,
      focused: element === document.activeElement,
    })),
  };
};

const restore = memory => {
  const elements = named();
  const parts = memory.parts.filter(part => elements.has(part.name));
  for (const part of parts) {
    const element = elements.get(part.name);
    if (part.open !== undefined) element.open = part.open;
    element.scrollLeft = part.left;
    if (part.focused) element.focus({ preventScroll: true });
  }
  const anchor = memory.anchor && document.getElementById(memory.anchor.id);
  const top = anchor ? window.scrollY + top_of(anchor) - memory.anchor.top : memory.scroll;
  window.scrollTo({ top, behavior: "instant" });
};

const replace = fresh => {
  if (!document.head.isEqualNode(fresh.head)) document.head.replaceWith(fresh.head);
  const parts = page => [...page.body.children].filter(part => !part.matches("#live, script"));
  const old = parts(document), anew = parts(fresh);
  if (old.length === anew.length) {
    old.forEach((part, place) => part.isEqualNode(anew[place]) || part.replaceWith(anew[place]));
    return;
  }
  old.forEach(part => part.remove());
  live.before(...anew);
};

// A live region speaks whenever its text is set, so it is set only where it differs.
const say = text => {
  if (live.textContent !== text) live.textContent = text;
};

source.addEventListener("report", event => {
  const told = JSON.parse(event.data);
  if (event.lastEventId !== shown) {
    const memory = remember();
    replace(new DOMParser().parseFromString(told.page, "text/html"));
    restore(memory);
    shown = event.lastEventId;
  }
  say(lost ? `Connection regained: ${told.progress}` : told.progress);
  lost = false;
});

source.addEventListener("error", () => {
  lost = true;
  const ended = source.readyState === EventSource.CLOSED;
  say(ended ? "Connection lost: open the address that the server prints" : "Connection lost: trying again");
});
