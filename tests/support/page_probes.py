"""What tests ask of a page, in JavaScript."""

# Controls without a name for a reader of the screen.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, summary")].map((control) => [
    control.outerHTML.slice(0, 80),
    control.ariaLabel || [...control.labels ?? []].map((each) => each.textContent).join(" ") || control.textContent,
]).filter(([, name]) => !name.trim())"""

# Text whose contrast is below 4.5, from computed styles; a canvas turns any CSS colour into numbers.
FAINT = """() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (under, colours) => {
    for (const colour of [`rgb(${under})`, ...colours]) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const colours = [];
    for (let each = element; each; each = each.parentElement) colours.unshift(getComputedStyle(each).backgroundColor);
    return over([255, 255, 255], colours);
  };
  const found = [];
  let seen = 0;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const part = element.placeholder && !element.value ? "::placeholder" : null;
    if (element.matches("[type=range], [type=checkbox], [type=radio]")) continue;
    if (!element.checkVisibility() || element.closest(".hidden-visually") || !(own || part || element.value)) continue;
    seen++;
    const back = behind(element), front = over(back, [getComputedStyle(element, part).color]);
    const [low, high] = [light(back), light(front)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) found.push([element.outerHTML.slice(0, 100), contrast]);
  }
  return [seen, found];
}"""

# Where the focus is.
FOCUSED = """() => {
  const { top, bottom } = document.activeElement.getBoundingClientRect();
  const { outlineStyle } = getComputedStyle(document.activeElement);
  return { id: document.activeElement.id, tag: document.activeElement.tagName, top, bottom, outlineStyle };
}"""

# Of elements.
BACKGROUNDS = "all => all.map((each) => getComputedStyle(each).backgroundColor)"
