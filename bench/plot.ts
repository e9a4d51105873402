/** Lines over something, as SVG: one panel or several, with the same colours for the same contenders. Used by the benchmarks' reports. */

export interface Panel {
  title: string;
  series: readonly { name: string; points: readonly (readonly [x: number, y: number])[] }[];
  /** What is at the right end and at the top; the left end and the bottom are 0. */
  right: number;
  top: number;
  /** Horizontal lines, and marks below. */
  rules: readonly { y: number; text: string }[];
  marks: readonly { x: number; text: string }[];
}

const COLORS: Record<string, string> = {
  direct: '#8a8f93',
  pgbouncer: '#c79a3b',
  'pgbouncer tuned': '#a3552f',
  threshold: '#a3552f',
  observe: '#7b68a6',
  pgweir: '#2a7f9e',
  enforce: '#2a7f9e',
};
const [WIDTH, HEIGHT] = [640, 320];
const [LEFT, RIGHT, TOP, BOTTOM] = [60, 150, 50, 40];

/** `title` is for those who cannot see it. */
export function svg(title: string, panels: readonly Panel[]): string {
  const columns = panels.length > 1 ? 2 : 1;
  const rows = Math.ceil(panels.length / columns);
  const drawn = panels.map(
    (panel, index) =>
      `<g transform="translate(${(index % columns) * WIDTH} ${Math.floor(index / columns) * HEIGHT})">\n${draw(panel)}\n</g>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${columns * WIDTH} ${rows * HEIGHT}" width="${columns * WIDTH}" height="${rows * HEIGHT}" font-family="sans-serif" font-size="13">
<title>${title}</title>
<rect width="100%" height="100%" fill="#fff"/>
${drawn.join('\n')}
</svg>
`;
}

function draw({ title, series, right, top, rules, marks }: Panel): string {
  const x = (at: number) => (LEFT + (at / right) * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const y = (value: number) => (HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP)).toFixed(1);
  const lines = series.map(({ name, points }, index) => {
    const path = points.map(([at, value]) => `${x(at)},${y(value)}`).join(' ');
    return `<polyline fill="none" stroke="${COLORS[name]}" stroke-width="2" points="${path}"/>
<text x="${WIDTH - RIGHT + 10}" y="${TOP + 20 * (index + 1)}" fill="${COLORS[name]}">${name}</text>`;
  });
  return [
    `<text x="8" y="20" font-size="15">${title}</text>`,
    ...rules.map(
      (each) => `<line x1="${LEFT}" y1="${y(each.y)}" x2="${WIDTH - RIGHT}" y2="${y(each.y)}" stroke="#bbb"/>
<text x="${LEFT - 8}" y="${Number(y(each.y)) + 4}" text-anchor="end">${each.text}</text>`,
    ),
    ...marks.map((each) => `<text x="${x(each.x)}" y="${HEIGHT - 15}" text-anchor="middle">${each.text}</text>`),
    ...lines,
  ].join('\n');
}
