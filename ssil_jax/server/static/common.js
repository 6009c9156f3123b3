// Elements are made of text alone: whatever a name holds, it never becomes markup.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children.filter((child) => child !== ""));
  return made;
}

// Controls, and marks that turn the direction of what follows, are shown as their codes.
export function shown(name) {
  return name.replace(
    /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu,
    (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
}
