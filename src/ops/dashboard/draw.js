// Curves as SVG: pure functions from numbers to markup. Called by dashboard.js.

const WIDTH = 600;
const HEIGHT = 150;
const FLOOR = 18;
const CEILING = 12;

/**
 * A figure with up to three lines over one time axis.
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.unit
 * @param {number[]} options.at wall-clock ms of each point
 * @param {{ name: string, values: (number | null)[] }[]} options.lines
 * @param {{ at: number, what: string }[]} options.events
 * @param {{ until: number, value: number } | null} [options.forecast] where the first line goes from its end, wall-clock ms
 * @param {number | null} [options.floor] a level that is drawn, such as a reserve
 * @returns {string} markup
 */
export function figure({ title, unit, at, lines, events, forecast = null, floor = null }) {
  const known = lines.flatMap(({ values }) => values.filter((value) => value !== null));
  const top = Math.max(1e-9, floor ?? 0, ...known) * 1.08;
  const [from, last] = [at[0] ?? 0, at.at(-1) ?? 1];
  const to = Math.max(last, Math.min(forecast?.until ?? last, last + (last - from) / 2));
  const x = (/** @type {number} */ when) => ((when - from) / Math.max(1, to - from)) * WIDTH;
  const y = (/** @type {number} */ value) => HEIGHT - FLOOR - (value / top) * (HEIGHT - FLOOR - CEILING);
  const paths = lines.map(({ values }, index) => `<path class="of-${index}" d="${lineOf(values, at, x, y)}"/>`);
  const now = lines.map(({ values }) => values.at(-1) ?? null);
  if (forecast !== null && now[0] != null)
    paths.push(
      `<path class="of-0 forecast" d="M${x(last).toFixed(1)} ${y(now[0]).toFixed(1)}L${x(forecast.until).toFixed(1)} ${y(forecast.value).toFixed(1)}"/>`,
    );
  const marks = events
    .filter((each) => each.at >= from && each.at <= to)
    .map(
      (each) =>
        `<line class="event" x1="${x(each.at).toFixed(1)}" x2="${x(each.at).toFixed(1)}" y1="0" y2="${HEIGHT - FLOOR}"><title>${safe(each.what)}</title></line>`,
    );
  const level =
    floor === null ? '' : `<line x1="0" x2="${WIDTH}" y1="${y(floor)}" y2="${y(floor)}"><title>reserve</title></line>`;
  const told = lines.map(({ name }, index) => `${name} ${short(now[index] ?? null)}`).join(', ');
  const keys = lines.map(
    ({ name }, index) => `<span class="key of-${index}">${safe(name)} ${short(now[index] ?? null)}${unit}</span>`,
  );
  return `<figure><figcaption><b>${safe(title)}</b>${keys.join('')}</figcaption>
<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${safe(`${title}: ${told}`)}">
<line x1="0" x2="${WIDTH}" y1="${HEIGHT - FLOOR}" y2="${HEIGHT - FLOOR}"/>${level}${marks.join('')}${paths.join('')}
<text x="2" y="11">${short(top)}${unit}</text><text x="2" y="${HEIGHT - 4}">${clock(from)}</text><text x="${WIDTH - 2}" y="${HEIGHT - 4}" text-anchor="end">${clock(to)}</text>
</svg></figure>`;
}

/**
 * @param {(number | null)[]} values
 * @param {number[]} at
 * @param {(when: number) => number} x
 * @param {(value: number) => number} y
 */
function lineOf(values, at, x, y) {
  let path = '';
  let isDrawing = false;
  for (const [index, value] of values.entries()) {
    if (value === null) {
      isDrawing = false;
      continue;
    }
    path += `${isDrawing ? 'L' : 'M'}${x(at[index] ?? 0).toFixed(1)} ${y(value).toFixed(1)}`;
    isDrawing = true;
  }
  return path;
}

/** @param {number} when wall-clock ms */
function clock(when) {
  return new Date(when).toTimeString().slice(0, 5);
}

/** @param {number | null} value */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return '–';
  if (Math.abs(value) >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (Math.abs(value) >= 1e4) return `${(value / 1e3).toFixed(0)}k`;
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

/** @param {unknown} text */
export function safe(text) {
  return String(text).replace(/[&<>"']/g, (each) => `&#${each.charCodeAt(0)};`);
}
