/** How coupons and jobs went over time. */
import { api, body } from './client'

export interface Window {
  from?: string
  to?: string
  step?: 'hour' | 'day'
}

export const stats = {
  service: (query: Window) => body(api.GET('/v1/stats', { params: { query } })),
  book: (id: string, query: Window) => body(api.GET('/v1/books/{id}/history', { params: { path: { id }, query } })),
}
