// The one door between Python and the browser's page: builds elements from a tree of plain values.
// Text only ever becomes a text node; tags, attributes and links outside the lists below are refused.
const TAGS = new Set(["a", "article", "b", "blockquote", "button", "code", "dd", "details", "div", "dl", "dt",
  "footer", "h2", "h3", "h4", "header", "li", "mark", "ol", "p", "pre", "section", "small", "span", "summary",
  "table", "tbody", "td", "th", "thead", "time", "tr", "ul"]);
const ATTRIBUTES = new Set(["aria-current", "aria-hidden", "aria-label", "aria-pressed", "colspan", "dir", "lang",
  "open", "role", "scope", "tabindex", "title"]);
const LINK = /^(\.\/)?(trace|health)?(\?[A-Za-z0-9=&%._-]*)?$/;

function build(node, pick) {
  if (typeof node === "string") return document.createTextNode(node);
  if (!TAGS.has(node.tag)) throw new Error("tag refused: " + node.tag);
  const element = document.createElement(node.tag);
  if (node.class) element.className = node.class;
  for (const [name, value] of Object.entries(node.attributes ?? {})) {
    if (!ATTRIBUTES.has(name)) throw new Error("attribute refused: " + name);
    element.setAttribute(name, value);
  }
  for (const [name, value] of Object.entries(node.numbers ?? {})) {
    element.style.setProperty("--" + name, String(Number(value)));
  }
  if (node.href != null && LINK.test(node.href)) element.setAttribute("href", node.href);
  if (node.pick != null) {
    element.dataset.pick = node.pick;
    element.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
      event.preventDefault();
      event.stopPropagation();  // a button inside a row that can be picked is picked alone
      pick(node.pick);
    });
    if (node.tag !== "a" && node.tag !== "button") element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      pick(node.pick);
    });
  }
  for (const child of node.children ?? []) element.appendChild(build(child, pick));
  return element;
}

// Arrow keys walk over the things that can be picked, as in a list box.
function walk(event, root) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = [...root.querySelectorAll("[data-pick]")];
  const at = all.indexOf(event.target.closest("[data-pick]"));
  if (at < 0) return;
  event.preventDefault();
  all[Math.min(all.length - 1, Math.max(0, at + step))].focus();
}

// Brings the interesting part into sight inside its own scroll box, never moving the page itself.
function reveal(root) {
  for (const target of root.querySelectorAll(".reveal")) {
    const box = target.closest(".scroll");
    if (!box) continue;
    const outer = box.getBoundingClientRect(), inner = target.getBoundingClientRect();
    if (inner.top < outer.top || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - 24;
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".ragblame");
  const fresh = JSON.stringify(data.nodes);
  if (root.drawn === fresh) return;
  const focused = (parentElement.activeElement ?? document.activeElement)?.dataset?.pick;
  const scrolled = [...root.querySelectorAll(".scroll")].map((box) => box.scrollTop);
  const pick = (value) => setTriggerValue("picked", value);
  root.replaceChildren(...data.nodes.map((node) => build(node, pick)));
  root.drawn = fresh;
  root.onkeydown = (event) => walk(event, root);
  root.querySelectorAll(".scroll").forEach((box, index) => { box.scrollTop = scrolled[index] ?? 0; });
  if (focused != null) [...root.querySelectorAll("[data-pick]")].find((e) => e.dataset.pick === focused)?.focus();
  reveal(root);
}
