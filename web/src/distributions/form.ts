/** A distribution as a form holds it, and what it says. */
import type { Mode, NewDistribution } from '@/api/distributions'

export interface DistributionForm {
  book_id: string | null
  pool_id: string | null
  mode: Mode
  per_user: number
  total: number
  max_per_user: number | ''
  on_shortage: 'fail' | 'partial'
}

export const MODES: Mode[] = ['equal', 'random', 'top_up']

export const emptyDistribution = (): DistributionForm => ({ book_id: null, pool_id: null, mode: 'equal', per_user: 1, total: 100, max_per_user: '', on_shortage: 'fail' })

/** The body of the request; null while something is missing. */
export function toWanted(form: DistributionForm): NewDistribution | null {
  const { book_id, pool_id, mode, per_user, total, max_per_user, on_shortage } = form
  if (!book_id || !pool_id) return null
  const base = { book_id, pool_id, mode, on_shortage }
  if (mode === 'random') return total >= 1 ? { ...base, total, ...(max_per_user === '' ? {} : { max_per_user }) } : null
  return per_user >= 1 ? { ...base, per_user } : null
}
