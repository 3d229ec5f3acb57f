/** What is drawn over a frame: boxes with their names, zones and lines. */

const LABEL_PX = 12;
/** Dark enough for white text (4.5:1 or more), and told apart on most pictures. One for each class, by its name. */
const COLOURS = ["#b4231f", "#0f6fc5", "#0b7d4f", "#a3480b", "#7a3fd0", "#b3206f", "#0a7585", "#5f6b0c"];
const ZONE = "#ffd166";

export function colourOf(name) {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + character.codePointAt(0)) >>> 0;
  return COLOURS[sum % COLOURS.length];
}

/** Fit the canvas to the pixels of the screen and draw. `result` and `definition` may be null. */
export function drawOverlay(canvas, result, definition, { boxes, zones }) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  if (zones && definition !== null) drawShapes(pen, definition, width, height, scale);
  if (boxes && result !== null) {
    for (const detection of result.detections) drawBox(pen, detection, width / result.width, height / result.height, scale);
  }
}

function drawBox(pen, { class: name, confidence, box, track_id: track }, scaleX, scaleY, scale) {
  const [left, top, right, bottom] = [box[0] * scaleX, box[1] * scaleY, box[2] * scaleX, box[3] * scaleY];
  const colour = colourOf(name);
  pen.lineWidth = 4 * scale;
  pen.strokeStyle = "rgb(255 255 255 / 85%)"; // a light edge, so that the box shows on dark pictures, too
  pen.strokeRect(left, top, right - left, bottom - top);
  pen.lineWidth = 2 * scale;
  pen.strokeStyle = colour;
  pen.strokeRect(left, top, right - left, bottom - top);
  const text = `${name} ${Math.round(confidence * 100)} %${track === null ? "" : ` · ${track}`}`;
  pen.font = `600 ${LABEL_PX * scale}px system-ui, sans-serif`;
  const wide = pen.measureText(text).width + 8 * scale;
  const high = (LABEL_PX + 6) * scale;
  const x = Math.max(Math.min(left - scale, pen.canvas.width - wide), 0);
  const y = top >= high ? top - high : Math.min(top, pen.canvas.height - high);
  pen.fillStyle = colour;
  pen.fillRect(x, y, wide, high);
  pen.fillStyle = "#fff";
  pen.textBaseline = "middle";
  pen.fillText(text, x + 4 * scale, y + high / 2);
}

function drawShapes(pen, { zones, lines }, width, height, scale) {
  pen.lineWidth = 2 * scale;
  pen.strokeStyle = ZONE;
  pen.fillStyle = "rgb(255 209 102 / 14%)";
  for (const { name, points } of zones ?? []) {
    trace(pen, points, width, height);
    pen.closePath();
    pen.fill();
    pen.stroke();
    label(pen, name, points, width, height, scale);
  }
  for (const { name, points } of lines ?? []) {
    trace(pen, points, width, height);
    pen.stroke();
    arrow(pen, points, width, height, scale);
    label(pen, name, points, width, height, scale);
  }
}

function trace(pen, points, width, height) {
  pen.beginPath();
  for (const [x, y] of points ?? []) pen.lineTo(x * width, y * height);
}

/** At the middle of the last piece, at a right angle: the way that counts as forward. */
function arrow(pen, points, width, height, scale) {
  if ((points?.length ?? 0) < 2) return;
  const [[ax, ay], [bx, by]] = points.slice(-2).map(([x, y]) => [x * width, y * height]);
  const length = Math.hypot(bx - ax, by - ay) || 1;
  const [nx, ny] = forward((bx - ax) / length, (by - ay) / length);
  const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
  const [tipX, tipY] = [mx + nx * 22 * scale, my + ny * 22 * scale];
  pen.beginPath();
  pen.moveTo(mx, my);
  pen.lineTo(tipX, tipY);
  for (const side of [-1, 1]) {
    pen.moveTo(tipX, tipY);
    pen.lineTo(tipX - (nx * 8 + side * ny * 6) * scale, tipY - (ny * 8 - side * nx * 6) * scale);
  }
  pen.stroke();
}

/** The side of a line from a to b (unit vector dx, dy; y points down) to which "forward" goes. */
export function forward(dx, dy) {
  return [-dy, dx];
}

function label(pen, name, points, width, height, scale) {
  if (!points?.length) return;
  pen.font = `600 ${LABEL_PX * scale}px system-ui, sans-serif`;
  pen.textBaseline = "bottom";
  pen.save();
  pen.shadowColor = "#000";
  pen.shadowBlur = 3 * scale;
  pen.fillStyle = ZONE;
  const [x, y] = points[0];
  pen.fillText(name, x * width + 4 * scale, y * height - 3 * scale);
  pen.restore();
}
