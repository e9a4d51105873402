/** Logs: pino, JSON or text, on standard output. Of statements never more than their shape; passwords never reach it. */
import pino from 'pino';
import type { Config } from '../config/schema.ts';
import { printable } from '../util/printable.ts';

export type Logger = pino.Logger;

/** A logger as `log` of the configuration says; `write` replaces standard output. */
export function makeLogger(
  config: Config['log'],
  write: (line: string) => void = (line) => void process.stdout.write(line),
): Logger {
  const stream = { write: config.format === 'text' ? (line: string) => write(asText(line)) : write };
  return pino(
    {
      level: config.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stream,
  );
}

/** One line for a terminal: time, level, message, and the rest as name=value. */
function asText(line: string): string {
  const { time, level, msg, ...rest } = JSON.parse(line) as Record<string, unknown>;
  const fields = Object.entries(rest).map(
    ([name, value]) => ` ${name}=${typeof value === 'string' ? printable(value) : JSON.stringify(value)}`,
  );
  return `${String(time).slice(11, 23)} ${String(level).padEnd(5)} ${msg}${fields.join('')}\n`;
}
