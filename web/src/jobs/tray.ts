/** Jobs that this person has started and not yet put away; they outlive a reload of the tab. */
import { defineStore } from 'pinia'
import { ref, watch } from 'vue'

const KEY = 'couponbook.tray'
const MOST = 20

export const useTray = defineStore('tray', () => {
  const ids = ref<string[]>(read())
  const isOpen = ref(true)
  watch(ids, (now) => sessionStorage.setItem(KEY, JSON.stringify(now)), { deep: true })

  function follow(id: string): void {
    if (!ids.value.includes(id)) ids.value = [id, ...ids.value].slice(0, MOST)
    isOpen.value = true
  }
  function putAway(id: string): void {
    ids.value = ids.value.filter((other) => other !== id)
  }
  return { ids, isOpen, follow, putAway }
})

function read(): string[] {
  try {
    const stored: unknown = JSON.parse(sessionStorage.getItem(KEY) ?? '[]')
    return Array.isArray(stored) ? stored.filter((id) => typeof id === 'string') : []
  } catch {
    return []
  }
}
