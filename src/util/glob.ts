/** Patterns of the configuration, such as `api-*`. Used by guard/classes and cache/policy. */

/** `*` stands for any characters. */
export function globOf(pattern: string): RegExp {
  const parts = pattern.split('*').map((part) => part.replaceAll(/[\\^$.*+?()[\]{}|]/g, String.raw`\$&`));
  return new RegExp(`^${parts.join('.*')}$`, 's');
}
