/** Where samples come from. Each source is asked from time to time by credits/poller; it may be slow, wrong or gone. */

/** What a source has said. */
export interface Reading {
  value: number;
  /** Wall-clock ms of what it describes, which is often minutes ago. */
  observedAt: number;
}

export interface Source {
  /** The newest readings, oldest first; none when there is nothing. Rejects when it cannot be asked or makes no sense. */
  read(signal: AbortSignal): Promise<Reading[]>;
}

/** A number, or an Error that says what came instead. Exporters say NaN when they have nothing: that is null. */
export function numberOf(value: unknown, what: string): number | null {
  if (typeof value === 'string' && /^[+-]?nan$/i.test(value)) return null;
  const number = typeof value === 'string' ? Number(value) : value;
  if (typeof number !== 'number' || !Number.isFinite(number) || value === '')
    throw new Error(`${what} is ${JSON.stringify(value)?.slice(0, 80)}, and no number`);
  return number;
}

/** Wall-clock ms from seconds, milliseconds or a date as text. */
export function timeOf(value: unknown, what: string): number {
  const number = typeof value === 'string' && !/^[\d.]+$/.test(value) ? Date.parse(value) : Number(value);
  if (!Number.isFinite(number) || value === null || value === '')
    throw new Error(`${what} is ${JSON.stringify(value)?.slice(0, 80)}, and no time`);
  // Nobody means the year 1970: seconds until a value is too great for them.
  return number < 1e11 ? number * 1000 : number;
}

const BODY_MAX = 1024 * 1024;

/** Gets JSON over HTTP. */
export async function getJson(
  url: string,
  signal: AbortSignal,
  headers: Record<string, string> = {},
): Promise<unknown> {
  const response = await fetch(url, { signal, headers: { accept: 'application/json', ...headers } });
  const text = await response.text();
  if (text.length > BODY_MAX) throw new Error(`${new URL(url).host} has answered with too much`);
  if (!response.ok) throw new Error(`${new URL(url).host} has answered ${response.status}: ${text.slice(0, 200)}`);
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${new URL(url).host} has not answered with JSON: ${text.slice(0, 80)}`);
  }
}
