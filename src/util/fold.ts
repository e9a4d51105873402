/**
 * Names as Postgres folds them: A to Z only (downcase_identifier, guc_name_compare). Names are Latin-1 strings, the bytes that came over the wire,
 * and what is beyond ASCII in them is parts of characters.
 *
 * Documented limit: a database in an encoding of one byte for each character folds more, by its locale.
 */

const BEYOND_ASCII = /[\x80-\uffff]/;

export function fold(name: string): string {
  if (!BEYOND_ASCII.test(name)) return name.toLowerCase();
  return name.replaceAll(/[A-Z]+/g, (letters) => letters.toLowerCase());
}
