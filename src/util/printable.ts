/** Text from elsewhere for a terminal, a log or a page: without what would move a cursor or begin a line of its own. */
export function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\u2028\u2029]+/gu, ' ');
}
