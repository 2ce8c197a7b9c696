/** The filter of the list of jobs as people type it: `state:failed kind:import book:ID`. */
import type { Schemas } from '@/api/client'

export const JOB_STATES: Schemas['JobState'][] = ['queued', 'running', 'succeeded', 'partially_succeeded', 'failed', 'cancelling', 'cancelled']

export interface JobFilter {
  state?: Schemas['JobState']
  kind?: string
  book_id?: string
}

/** What a text means; words that mean nothing are given back. */
export function parseFilter(text: string): { filter: JobFilter; unknown: string[] } {
  const filter: JobFilter = {}
  const unknown: string[] = []
  for (const word of text.trim().split(/\s+/).filter(Boolean)) {
    const [name, value] = word.split(/:(.*)/s)
    const state = JOB_STATES.find((state) => state === value || state === value?.replaceAll('-', '_'))
    if (name === 'state' && state) filter.state = state
    else if (name === 'kind' && value) filter.kind = value
    else if (name === 'book' && value && /^[0-9a-f-]{36}$/i.test(value)) filter.book_id = value
    else unknown.push(word)
  }
  return { filter, unknown }
}

export function writeFilter(filter: JobFilter): string {
  const words = [filter.state && `state:${filter.state}`, filter.kind && `kind:${filter.kind}`, filter.book_id && `book:${filter.book_id}`]
  return words.filter(Boolean).join(' ')
}
