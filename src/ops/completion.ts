/** Completions for shells, made from the commands that there are. Called by cli. */
import type { Command } from 'commander';

interface Word {
  /** The command before it, such as `switch`; '': none. */
  after: string;
  word: string;
  description: string;
}

/** A script that the shell sources; null: it is none of bash, zsh, fish. */
export function completionOf(program: Command, shell: string): string | null {
  const words = wordsOf(program, '');
  switch (shell) {
    case 'bash':
      return bash(words);
    case 'zsh':
      return `autoload -U bashcompinit && bashcompinit\n${bash(words)}`;
    case 'fish':
      return words.map(fish).join('\n');
    default:
      return null;
  }
}

function wordsOf(command: Command, path: string): Word[] {
  return [
    ...command.options.map(({ long, description }) => ({ after: path, word: long!, description })),
    ...command.commands.flatMap((each) => [
      { after: path, word: each.name(), description: each.description() },
      ...wordsOf(each, path === '' ? each.name() : `${path} ${each.name()}`),
    ]),
  ];
}

function bash(words: readonly Word[]): string {
  const paths = [...new Set(words.map(({ after }) => after))].sort((a, b) => b.length - a.length);
  const cases = paths.map((path) => {
    const own = words.filter(({ after }) => after === path).map(({ word }) => word);
    return `    ${path === '' ? '*' : `"${path}"*`}) words="${own.join(' ')}" ;;`;
  });
  return `_pgweir() {
  local typed words
  typed="\${COMP_WORDS[*]:1:COMP_CWORD-1}"
  case "$typed" in
${cases.join('\n')}
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
  [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _pgweir pgweir`;
}

function fish({ after, word, description }: Word): string {
  const when = after === '' ? '__fish_use_subcommand' : `__fish_seen_subcommand_from ${after.split(' ').at(-1)}`;
  const what = word.startsWith('--') ? `-l ${word.slice(2)}` : `-a ${word}`;
  return `complete -c pgweir -f -n '${when}' ${what} -d '${description.replaceAll("'", '’')}'`;
}
