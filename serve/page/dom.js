// Elements made from plain values. Text only ever becomes a text node, so nothing that a model or a person wrote is read as HTML.

export function make(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name, extra = "") {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", extra);
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#${name}`);
  svg.append(use);
  return svg;
}

export function button(label, attributes, action, picture) {
  const element = make("button", { type: "button", ...attributes }, picture ? [picture, label] : [label]);
  element.addEventListener("click", action);
  return element;
}
