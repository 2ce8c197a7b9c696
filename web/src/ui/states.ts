/** How each state looks. A state that is not known here (of a newer service) is grey and keeps its word. */
export const looks = {
  coupon: {
    unassigned: { icon: 'circle', colour: 'grey' },
    assigned: { icon: 'half', colour: 'blue' },
    locked: { icon: 'lock', colour: 'amber' },
    redeemed: { icon: 'check', colour: 'green' },
    void: { icon: 'dash', colour: 'slate' },
  },
  job: {
    queued: { icon: 'clock', colour: 'grey' },
    running: { icon: 'play', colour: 'blue' },
    succeeded: { icon: 'check', colour: 'green' },
    partially_succeeded: { icon: 'warn', colour: 'amber' },
    failed: { icon: 'cross', colour: 'red' },
    cancelling: { icon: 'dash', colour: 'slate' },
    cancelled: { icon: 'dash', colour: 'slate' },
  },
  book: {
    draft: { icon: 'circle', colour: 'grey' },
    active: { icon: 'play', colour: 'green' },
    paused: { icon: 'pause', colour: 'amber' },
    archived: { icon: 'dash', colour: 'slate' },
  },
  distribution: {
    planned: { icon: 'clock', colour: 'grey' },
    running: { icon: 'play', colour: 'blue' },
    completed: { icon: 'check', colour: 'green' },
    completed_with_shortfall: { icon: 'warn', colour: 'amber' },
    failed: { icon: 'cross', colour: 'red' },
    cancelled: { icon: 'dash', colour: 'slate' },
    undoing: { icon: 'undo', colour: 'blue' },
    undone: { icon: 'undo', colour: 'slate' },
    partially_undone: { icon: 'undo', colour: 'amber' },
  },
  other: {
    active: { icon: 'check', colour: 'green' },
    paused: { icon: 'pause', colour: 'amber' },
    over: { icon: 'dash', colour: 'slate' },
    disabled: { icon: 'dash', colour: 'slate' },
    revoked: { icon: 'dash', colour: 'slate' },
    expired: { icon: 'clock', colour: 'slate' },
    admin: { icon: 'shield', colour: 'blue' },
    user: { icon: 'user', colour: 'grey' },
    sealed: { icon: 'lock', colour: 'green' },
    unsealed: { icon: 'clock', colour: 'grey' },
  },
} as const

type Look = { icon: 'circle' | 'half' | 'lock' | 'check' | 'dash' | 'clock' | 'play' | 'pause' | 'warn' | 'cross' | 'undo' | 'shield' | 'user'; colour: string }

export function lookOf(of: keyof typeof looks, state: string): Look {
  const known = looks[of] as Record<string, Look>
  return known[state] ?? { icon: 'circle', colour: 'grey' }
}
