/**
 * Patterns of the configuration, such as `api-*`. Used by guard/classes and cache/policy. What they are held against may be a client's word, so
 * it is walked through once.
 */

/** Does a text fit the pattern? `*` stands for any characters. */
export function globOf(pattern: string): (text: string) => boolean {
  const [head = '', ...parts] = pattern.split('*');
  const tail = parts.pop();
  if (tail === undefined) return (text) => text === pattern;
  return (text) => {
    if (!text.startsWith(head)) return false;
    let at = head.length;
    for (const part of parts) {
      const found = text.indexOf(part, at);
      if (found === -1) return false;
      at = found + part.length;
    }
    return text.length - at >= tail.length && text.endsWith(tail);
  };
}
