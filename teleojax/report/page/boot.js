"use strict";
// style elements that Bokeh makes carry the nonce which the policy asks for
const makeElement = document.createElement.bind(document);
document.createElement = (name, options) => {
  const made = makeElement(name, options);
  if (String(name).toLowerCase() === "style") made.nonce = "NONCE";
  return made;
};
